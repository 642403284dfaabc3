"""A pinhole camera above a flat ground. World axes: X to the right, Y along the street, Z up, in metres."""

import numpy as np


class Camera:
    """Pinhole camera at (x, 0, height).

    Args:
        size: (width, height) of the picture in pixels.
        focal: focal length in picture widths.
        x, height: position in metres. The street starts at Y = 0, where the camera stands.
        pitch, yaw, roll: radians; positive looks down, looks right, leans the camera to the right.

    Depth means distance along the optical axis, as in SYNTHIA, not along the ray.
    """

    def __init__(self, size, focal, x=0.0, height=1.4, pitch=0.0, yaw=0.0, roll=0.0):
        self.width, self.height_px = size
        self.f = focal * self.width
        self.position = np.array([x, 0.0, height])
        forward = np.array([np.sin(yaw) * np.cos(pitch), np.cos(yaw) * np.cos(pitch), -np.sin(pitch)])
        right = np.array([np.cos(yaw), -np.sin(yaw), 0.0])
        down = np.cross(forward, right)
        right, down = (np.cos(roll) * right + np.sin(roll) * down, np.cos(roll) * down - np.sin(roll) * right)
        self.rotation = np.stack([right, down, forward])
        # Level direction across the view: billboards stand in the plane it spans with the vertical.
        self.across = np.array([np.cos(yaw), -np.sin(yaw), 0.0])
        self.xn = (np.arange(self.width) + 0.5 - self.width / 2) / self.f
        self.yn = (np.arange(self.height_px) + 0.5 - self.height_px / 2) / self.f

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """World points (N, 3) in camera axes: right, down, depth."""
        return (points - self.position) @ self.rotation.T

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Camera points (N, 3) with positive depth as (N, 2) positions, pixel centres at whole numbers."""
        return points[:, :2] / points[:, 2:] * self.f + (self.width / 2 - 0.5, self.height_px / 2 - 0.5)

    def along_rays(self, axis, rows=slice(None), columns=slice(None)) -> np.ndarray:
        """How far along a world axis (3,) each pixel's ray gets in a metre of depth: (rows, columns)."""
        right, down, forward = (self.rotation @ axis).tolist()
        across = (right * self.xn[columns]).astype(np.float32)
        return across + (down * self.yn[rows, None] + forward).astype(np.float32)

    def rays(self) -> list[np.ndarray]:
        """Directions X, Y, Z of all pixels, each (H, W), such that point = position + depth * direction."""
        return [self.along_rays(axis) for axis in np.eye(3)]
