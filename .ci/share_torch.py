"""Links torch, and what it requires, from the environment that runs this into a folder.

    ENVIRONMENT/bin/python .ci/share_torch.py FOLDER

Another environment whose path has the folder has torch too, and nothing else of this one.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "benchmarks"))
from _installed import required  # noqa: E402

folder = Path(sys.argv[1])
folder.mkdir()
for found in required("torch").values():
    # Packages may share a folder (nvidia), and scripts lie outside.
    tops = {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}
    for top in tops:
        link = folder / top
        if not link.is_symlink():
            link.symlink_to(Path(str(found.locate_file(top))).resolve())
