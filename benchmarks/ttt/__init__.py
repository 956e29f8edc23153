"""Speed, memory and capability of the TTT layer, beside the forms that public code uses."""
