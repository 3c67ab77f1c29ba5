"""The 66 labels of Mapillary Vistas v1.2, in their official order: what its ``config.json`` holds."""

from __future__ import annotations

from typing import NamedTuple


class VistasLabel(NamedTuple):
    """One entry of the label list; its index in ``VISTAS_LABELS`` is its pixel value."""

    name: str
    readable: str
    color: tuple[int, int, int]
    instances: bool


VISTAS_LABELS = (
    VistasLabel("animal--bird", "Bird", (165, 42, 42), True),
    VistasLabel("animal--ground-animal", "Ground Animal", (0, 192, 0), True),
    VistasLabel("construction--barrier--curb", "Curb", (196, 196, 196), False),
    VistasLabel("construction--barrier--fence", "Fence", (190, 153, 153), False),
    VistasLabel("construction--barrier--guard-rail", "Guard Rail", (180, 165, 180), False),
    VistasLabel("construction--barrier--other-barrier", "Barrier", (90, 120, 150), False),
    VistasLabel("construction--barrier--wall", "Wall", (102, 102, 156), False),
    VistasLabel("construction--flat--bike-lane", "Bike Lane", (128, 64, 255), False),
    VistasLabel("construction--flat--crosswalk-plain", "Crosswalk - Plain", (140, 140, 200), True),
    VistasLabel("construction--flat--curb-cut", "Curb Cut", (170, 170, 170), False),
    VistasLabel("construction--flat--parking", "Parking", (250, 170, 160), False),
    VistasLabel("construction--flat--pedestrian-area", "Pedestrian Area", (96, 96, 96), False),
    VistasLabel("construction--flat--rail-track", "Rail Track", (230, 150, 140), False),
    VistasLabel("construction--flat--road", "Road", (128, 64, 128), False),
    VistasLabel("construction--flat--service-lane", "Service Lane", (110, 110, 110), False),
    VistasLabel("construction--flat--sidewalk", "Sidewalk", (244, 35, 232), False),
    VistasLabel("construction--structure--bridge", "Bridge", (150, 100, 100), False),
    VistasLabel("construction--structure--building", "Building", (70, 70, 70), False),
    VistasLabel("construction--structure--tunnel", "Tunnel", (150, 120, 90), False),
    VistasLabel("human--person", "Person", (220, 20, 60), True),
    VistasLabel("human--rider--bicyclist", "Bicyclist", (255, 0, 0), True),
    VistasLabel("human--rider--motorcyclist", "Motorcyclist", (255, 0, 100), True),
    VistasLabel("human--rider--other-rider", "Other Rider", (255, 0, 200), True),
    VistasLabel("marking--crosswalk-zebra", "Lane Marking - Crosswalk", (200, 128, 128), True),
    VistasLabel("marking--general", "Lane Marking - General", (255, 255, 255), False),
    VistasLabel("nature--mountain", "Mountain", (64, 170, 64), False),
    VistasLabel("nature--sand", "Sand", (230, 160, 50), False),
    VistasLabel("nature--sky", "Sky", (70, 130, 180), False),
    VistasLabel("nature--snow", "Snow", (190, 255, 255), False),
    VistasLabel("nature--terrain", "Terrain", (152, 251, 152), False),
    VistasLabel("nature--vegetation", "Vegetation", (107, 142, 35), False),
    VistasLabel("nature--water", "Water", (0, 170, 30), False),
    VistasLabel("object--banner", "Banner", (255, 255, 128), True),
    VistasLabel("object--bench", "Bench", (250, 0, 30), True),
    VistasLabel("object--bike-rack", "Bike Rack", (100, 140, 180), True),
    VistasLabel("object--billboard", "Billboard", (220, 220, 220), True),
    VistasLabel("object--catch-basin", "Catch Basin", (220, 128, 128), True),
    VistasLabel("object--cctv-camera", "CCTV Camera", (222, 40, 40), True),
    VistasLabel("object--fire-hydrant", "Fire Hydrant", (100, 170, 30), True),
    VistasLabel("object--junction-box", "Junction Box", (40, 40, 40), True),
    VistasLabel("object--mailbox", "Mailbox", (33, 33, 33), True),
    VistasLabel("object--manhole", "Manhole", (100, 128, 160), True),
    VistasLabel("object--phone-booth", "Phone Booth", (142, 0, 0), True),
    VistasLabel("object--pothole", "Pothole", (70, 100, 150), False),
    VistasLabel("object--street-light", "Street Light", (210, 170, 100), True),
    VistasLabel("object--support--pole", "Pole", (153, 153, 153), True),
    VistasLabel("object--support--traffic-sign-frame", "Traffic Sign Frame", (128, 128, 128), True),
    VistasLabel("object--support--utility-pole", "Utility Pole", (0, 0, 80), True),
    VistasLabel("object--traffic-light", "Traffic Light", (250, 170, 30), True),
    VistasLabel("object--traffic-sign--back", "Traffic Sign (Back)", (192, 192, 192), True),
    VistasLabel("object--traffic-sign--front", "Traffic Sign (Front)", (220, 220, 0), True),
    VistasLabel("object--trash-can", "Trash Can", (140, 140, 20), True),
    VistasLabel("object--vehicle--bicycle", "Bicycle", (119, 11, 32), True),
    VistasLabel("object--vehicle--boat", "Boat", (150, 0, 255), True),
    VistasLabel("object--vehicle--bus", "Bus", (0, 60, 100), True),
    VistasLabel("object--vehicle--car", "Car", (0, 0, 142), True),
    VistasLabel("object--vehicle--caravan", "Caravan", (0, 0, 90), True),
    VistasLabel("object--vehicle--motorcycle", "Motorcycle", (0, 0, 230), True),
    VistasLabel("object--vehicle--on-rails", "On Rails", (0, 80, 100), False),
    VistasLabel("object--vehicle--other-vehicle", "Other Vehicle", (128, 64, 64), True),
    VistasLabel("object--vehicle--trailer", "Trailer", (0, 0, 110), True),
    VistasLabel("object--vehicle--truck", "Truck", (0, 0, 70), True),
    VistasLabel("object--vehicle--wheeled-slow", "Wheeled Slow", (0, 0, 192), True),
    VistasLabel("void--car-mount", "Car Mount", (32, 32, 32), False),
    VistasLabel("void--ego-vehicle", "Ego Vehicle", (120, 10, 10), False),
    VistasLabel("void--unlabeled", "Unlabeled", (0, 0, 0), False),
)
