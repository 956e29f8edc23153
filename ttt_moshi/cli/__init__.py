"""The command line: one file a command. Nothing outside this folder prints."""
