"""Brain-MRI phantoms: slices with a lesion of a known class, mask included, made from a public template.

They let every journey run with no patient's data at hand. They are not a model of disease: an accuracy on
phantoms says that the machinery learns, and nothing about patients.
"""

from fl.data.phantoms.acquisition import NOMINAL_SCANNER, ScannerProfile, draw_scanner
from fl.data.phantoms.atlas import Atlas, load_atlas
from fl.data.phantoms.folder import PhantomFolder, WriteProgress, phantom_folder, write_phantom_folder
from fl.data.phantoms.phantom import Phantom, make_phantom
from fl.data.phantoms.scene import Scene
from fl.data.phantoms.settings import PhantomSettings

__all__ = [
    "NOMINAL_SCANNER",
    "Atlas",
    "Phantom",
    "PhantomFolder",
    "PhantomSettings",
    "ScannerProfile",
    "Scene",
    "WriteProgress",
    "draw_scanner",
    "load_atlas",
    "make_phantom",
    "phantom_folder",
    "write_phantom_folder",
]
