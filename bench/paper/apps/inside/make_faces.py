"""Draws the video in which faces are looked for: up to two that move about and change their size, on a grey wall.

A face is made of what the cascade looks for: a bright oval with dark hair, eyes darker than cheeks, a bright ridge of
the nose between them, a dark mouth. The number of faces of each frame is put beside the video, and it is made sure that
they are found: `make_faces.py VIDEO` fails otherwise.
"""

import math
import sys
from typing import Any

import cv2  # type: ignore[import-not-found]
import numpy as np  # type: ignore[import-not-found, unused-ignore]
from faces import WALL, find, finder  # type: ignore[import-not-found]

FRAMES = 100
RATE = 5
SIZE = (320, 240)

_DRAWN = 200


def draw_face(size: int) -> Any:
    """A grey picture of a face, `size` pixels wide and high."""
    picture = np.full((_DRAWN, _DRAWN), WALL, np.uint8)

    def oval(x: int, y: int, width: int, height: int, grey: int) -> None:
        cv2.ellipse(picture, (x, y), (width, height), 0, 0, 360, grey, -1)

    oval(100, 105, 70, 92, 190)
    cv2.ellipse(picture, (100, 45), (74, 50), 0, 180, 360, 60, -1)
    for x in (70, 130):
        oval(x, 84, 20, 12, 125)
        oval(x, 86, 14, 7, 225)
        oval(x, 86, 7, 7, 30)
        cv2.ellipse(picture, (x, 70), (20, 7), 0, 180, 360, 60, 5)
    oval(100, 105, 9, 32, 210)
    oval(100, 132, 16, 6, 140)
    oval(100, 158, 28, 9, 95)
    for x in (58, 142):
        oval(x, 125, 18, 16, 205)
    return cv2.resize(cv2.GaussianBlur(picture, (9, 9), 0), (size, size), interpolation=cv2.INTER_AREA)


def draw_frame(number: int, wall: Any) -> tuple[Any, int]:
    """A frame of the video, and how many faces are on it."""
    frame = wall.copy()
    angle = 2 * math.pi * number / FRAMES
    # None for a tenth of the time, two for half of it.
    count = 0 if number % 10 == 9 else 2 if number >= FRAMES // 2 else 1
    for face in range(count):
        size = 80 + int(12 * math.sin(2 * angle + face))
        x = 30 + 150 * face + int(20 * math.cos(angle))
        y = 70 + int(45 * math.sin(angle + face))
        frame[y : y + size, x : x + size] = draw_face(size)
    return cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR), count


def main(video: str) -> None:
    """Draw, write, and read again."""
    wall = np.full((SIZE[1], SIZE[0]), WALL, np.uint8)
    frames = [draw_frame(number, wall) for number in range(FRAMES)]
    cascade = finder()
    writer = cv2.VideoWriter(video, cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), RATE, SIZE)
    for frame, _ in frames:
        writer.write(frame)
    writer.release()
    capture = cv2.VideoCapture(video, cv2.CAP_OPENCV_MJPEG)
    for number, (_, count) in enumerate(frames):
        found = len(find(cascade, capture.read()[1]))
        if found != count:
            sys.exit(f"{found} faces are found on frame {number}, which has {count}")
    with open(video + ".counts", "w") as counts:
        counts.write("".join(f"{count}\n" for _, count in frames))


if __name__ == "__main__":
    main(sys.argv[1])
