"""MONAI's occlusion sensitivity by incremental inference.

    from captum_krypton.monai import OcclusionSensitivity

Takes the place of `monai.visualize.OcclusionSensitivity`. MONAI itself is not needed.

May use: top level.
"""

from .sensitivity import OcclusionSensitivity

__all__ = ["OcclusionSensitivity"]
