"""The main job as a tour: four nodes, three sites, and a game that moves while its players play.

base_layer   a real base: this machine's Python, its library and the packages of the environment
game_server  the application; runs with the interpreter of the checked-out base
players      its clients, which measure what they see
tour         the script of the demo, and the table at the end
"""

from p2player.demo.tour import run_demo

__all__ = ["run_demo"]
