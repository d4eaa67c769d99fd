"""Looks for faces in a video, over and over, and tells who connects how many there are on each frame.

A subscriber on port 7001 gets a line `frame NUMBER faces FOUND drawn DRAWN` for each frame from then on. What was found
so far is reported to the first process.
"""

import os
import socket
import time
from typing import Any

import cv2  # type: ignore[import-not-found]

VIDEO = "/opt/p2p/faces.avi"
CASCADE = "/usr/share/opencv4/haarcascades/haarcascade_frontalface_default.xml"
PORT = 7001
FRAME_S = 0.2
"""No more than five frames a second, which is what the video has; an emulated processor is slower."""
MOST_SUBSCRIBERS = 16
REPORTS = 3
WALL = 150


def finder() -> Any:
    """The detector: Viola and Jones' cascade, as trained by OpenCV's authors."""
    cv2.setNumThreads(1)
    return cv2.CascadeClassifier(CASCADE)


def find(cascade: Any, frame: Any) -> Any:
    """Rectangles of the faces on a frame."""
    return cascade.detectMultiScale(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), 1.2, 4, minSize=(48, 48))


class Detection:
    """The loop over the video, and who listens."""

    def __init__(self) -> None:
        self.cascade = finder()
        with open(VIDEO + ".counts") as counts:
            self.drawn = [int(line) for line in counts]
        self.frames = 0
        self.detections = 0
        self.subscribers: list[socket.socket] = []
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("0.0.0.0", PORT))
        self.listener.listen(MOST_SUBSCRIBERS)
        self.listener.setblocking(False)

    def run(self) -> None:
        """Play the video for ever."""
        while True:
            capture = cv2.VideoCapture(VIDEO, cv2.CAP_OPENCV_MJPEG)
            for drawn in self.drawn:
                began = time.monotonic()
                found = len(find(self.cascade, capture.read()[1]))
                self.frames += 1
                self.detections += found
                self.accept()
                self.tell(f"frame {self.frames} faces {found} drawn {drawn}\n".encode())
                os.write(REPORTS, f"frames {self.frames} detections {self.detections}\n".encode())
                # Another machine's clock may be anywhere: at most one frame's time is waited.
                time.sleep(min(FRAME_S, max(0.0, FRAME_S - (time.monotonic() - began))))
            capture.release()

    def accept(self) -> None:
        """Take those who have connected."""
        while len(self.subscribers) < MOST_SUBSCRIBERS:
            try:
                end, _ = self.listener.accept()
            except OSError:
                return
            end.setblocking(False)
            self.subscribers.append(end)

    def tell(self, line: bytes) -> None:
        """Send a line to all subscribers; who does not read is dropped."""
        for end in list(self.subscribers):
            try:
                end.send(line)
            except OSError:
                self.subscribers.remove(end)
                end.close()


if __name__ == "__main__":
    Detection().run()
