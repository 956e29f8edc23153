"""Generated demo speech, and small models of the official classes fitted on it."""

from ttt_moshi.synthetic.material import DEMO, TINY, Material, MaterialSize, make_demo_material, make_tiny_material

__all__ = ["DEMO", "TINY", "Material", "MaterialSize", "make_demo_material", "make_tiny_material"]
