"""Render shards of training clips (or video files) from motion capture, animations and procedural motion.

Clips are pure functions of (split, number): the same command makes the same pixels. Shards that exist are skipped.
Splits are by subject where a class has two or more, else by take and by generator seed (see scripts.py).

Example:
  scripts/factory/factory render --out build/renders --split train --mocap DIR --animations DIR --count 1024
  scripts/factory/factory render --video build/factory/held --split held --mocap DIR --animations DIR --count 100
  scripts/factory/factory render --nothing-hour nothing.mp4 --seconds 3600 --mocap DIR --animations DIR
"""

import json
import math
import multiprocessing
import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from . import motion as m
from . import scripts
from .classes import INDEX, LABELS
from .data import BOUND, GRID, SIZE
from .errors import BadInput
from .scene import NEAR, Body, Camera, Look, build_backdrop, paint, photographs, silhouette

FPS = 25.0
T, FLOW_SIZE = 72, 2 * SIZE
SHARD = 64
RATES = (10, 12, 15, 18, 20, 24, 29.97, 30, 50, 60)
SALT = {"train": 11, "held": 23}
NOTHING_SHARE = 2.3  # of an ordinary class's


# ---------------------------------------------------------------- 25 frames a second, and flow: as the daemon does it


def slot(t):
    """The 25 fps tick a picture taken at `t` s belongs to (half up)."""
    return math.floor(t * FPS + 0.5)


def admitted(times):
    """Indices of the pictures that the 25-fps rule admits: one whose slot is not later than the last is dropped."""
    out, last = [], None
    for i, t in enumerate(times):
        if last is None or slot(t) > last:
            out.append(i)
            last = slot(t)
    return out


def ticks(times):
    """For admitted picture times: per tick (picture shown, pair (a, b) of the flow, factor on that flow).

    Ticks run from the second picture's; flow of the pair is scaled to 1/25 s and given to every tick between the two.
    """
    out = []
    for i in range(1, len(times)):
        a, b = times[i - 1], times[i]
        for k in range(slot(a) + 1, slot(b) + 1):
            shown = i if (b - k / FPS) <= (k / FPS - a) or k == slot(b) else i - 1
            out.append((shown, i, (1 / FPS) / (b - a)))
    return out


def make_dis():
    """The daemon's optical flow, on luma of twice the model's size: DIS FAST to scale 1, without refinement."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    dis.setFinestScale(1)
    dis.setPatchSize(8)
    dis.setPatchStride(4)
    dis.setGradientDescentIterations(16)
    dis.setVariationalRefinementIterations(0)
    return dis


def squeeze(picture):
    """Whole picture -> (RGB u8 [SIZE, SIZE, 3], luma u8 [FLOW_SIZE, FLOW_SIZE]) by area averaging, aspect ignored."""
    rgb = cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return rgb, cv2.resize(luma, (FLOW_SIZE, FLOW_SIZE), interpolation=cv2.INTER_AREA)


def flow_of(dis, before, after):
    """Flow [SIZE, SIZE, 2] between two lumas, in pixels of the model's picture."""
    flow = dis.calc(before, after, None)
    return cv2.resize(flow, (SIZE, SIZE), interpolation=cv2.INTER_AREA) * 0.5


def encode_flow(flow):
    """Pixels per 1/25 s -> i8, +-BOUND at +-127."""
    return np.rint(np.clip(flow, -BOUND, BOUND) * (127 / BOUND)).astype(np.int8)


# ---------------------------------------------------------------- one take of a camera


class Shot:
    """A script before a camera: everything random drawn at construction, then `picture(i)` in order."""

    def __init__(self, rng, script, times, size=None, clean=False, detail=False, camera=None, looks=None):
        self.times = np.asarray(times)
        self.script, self.clean = script, clean
        self.width, self.height = size or shape_of(rng)
        poses = [m.at_frames(a, self.times * m.RATE) for a in script.actors]
        self.shake = 0.0 if clean or rng.random() < 0.6 else float(rng.choice([0.3, 1.0, 2.5]))
        self.margin = int(4 * self.shake + 6) if self.shake or script.flicker == "bump" else 0
        self.camera = camera or frame_camera(rng, script, poses, self.times, self.width, self.height, self.margin)
        boxes = self.furniture(rng, poses)
        extent = self.extent(poses, boxes)
        bright = rng.uniform(0.65, 1.2)
        self.back, near, (_, wall) = build_backdrop(rng, self.camera, extent, boxes, bright)
        self.back = self.back.astype(np.uint8)
        self.near = near.astype(np.uint8) * 255 if near.any() else None
        angle = rng.uniform(-2.6, -0.5)
        light = np.array([np.cos(angle), np.sin(angle)])
        gain = bright * rng.uniform(0.8, 1.25)
        self.items, self.poses = [], poses
        for k, pose in enumerate(poses):
            look = looks[k] if looks else Look(rng, wall)
            self.items += Body(self.camera, pose, look, light, gain, detail).items
        self.shadow = rng.uniform(0.15, 0.5) if rng.random() < 0.6 and poses else 0.0
        self.sun = np.array([rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6)])
        self.prop_colour = tuple(float(v) for v in rng.uniform(20, 235, 3))
        self.prop_size = rng.uniform(0.04, 0.12)
        self.mover = (
            self.make_mover(rng) if rng.random() < (0.25 if script.label == "nothing" else 0.06) and not clean else None
        )
        self.sensor(rng, clean)

    def sensor(self, rng, clean):
        """Exposure, noise, grey, compression of this camera."""
        n = len(self.times)
        t = self.times
        self.gain = np.ones(n) + (m.wander(rng, t, rng.uniform(0, 0.08), 3) if rng.random() < 0.3 and not clean else 0)
        if rng.random() < 0.12 and not clean:
            self.gain += 0.04 * np.sin(2 * np.pi * rng.uniform(1, 11) * t)
        if self.script.flicker == "switch":
            self.gain *= np.where(t > rng.uniform(0.4, 2.4), rng.choice([0.35, 0.5, 1.8, 2.5]), 1.0)
        elif self.script.flicker == "fade":
            self.gain *= m.keys(t, [(rng.uniform(0, 1), 1), (rng.uniform(1.3, 2.8), rng.uniform(0.3, 1.6))])
        self.contrast = rng.uniform(0.65, 1.25)
        self.tint = 1 + rng.normal(0, 0.05, 3)
        self.grey = rng.random() < 0.08
        sigma = 0.0 if clean or rng.random() < 0.3 else float(rng.exponential(3.0))
        self.noise = None
        if sigma > 0.4:
            field = rng.normal(0, min(sigma, 14), (self.height + 64, self.width + 64, 1 if rng.random() < 0.5 else 3))
            if rng.random() < 0.4:
                field = cv2.GaussianBlur(field, (0, 0), 0.8).reshape(*field.shape[:2], -1) * 1.8
            field = np.broadcast_to(field, (*field.shape[:2], 3))
            self.noise = (np.clip(field, 0, 255).astype(np.uint8), np.clip(-field, 0, 255).astype(np.uint8))
        self.roll = rng.integers(0, 64, (n, 2))
        self.jpeg = 0 if clean or rng.random() < 0.5 else int(rng.uniform(15, 90))
        self.skip = 0.0 if clean or rng.random() < 0.6 else float(rng.uniform(1.0, 4.0))
        self.soft = 0.0 if clean or rng.random() < 0.7 else float(rng.uniform(0.4, 1.4))
        self.blur = (not clean) and rng.random() < 0.3
        self.offsets = np.zeros((n, 3))
        if self.shake:
            for axis in range(2):
                self.offsets[:, axis] = m.wander(rng, t, self.shake, 1.6) + m.wander(rng, t, 0.3 * self.shake, 0.4)
            self.offsets[:, 2] = m.wander(rng, t, 0.2 * self.shake, 2.0)
        if self.script.flicker == "bump":
            at = rng.uniform(0.3, 2.2)
            hit = np.where(t > at, np.exp(-(t - at) * 5) * np.sin((t - at) * rng.uniform(15, 40)), 0)
            self.offsets[:, :2] += hit[:, None] * rng.uniform(-8, 8, 2)
        self.last = self.before = None

    def furniture(self, rng, poses):
        """The script's boxes and random ones away from the people; `near` if they stand before the people."""
        boxes, camera = [], self.camera
        people = np.concatenate([p[:, m.PELVIS] for p in poses]) if poses else np.zeros((0, 3))
        depth = ((people - camera.place) @ camera.r[2]).min() if len(people) else np.inf
        for c, size, yaw in self.script.boxes:
            rest = np.linalg.norm(np.asarray(c)[[0, 2]] - camera.place[[0, 2]])
            person = np.median(np.linalg.norm(people[:, [0, 2]] - camera.place[[0, 2]], axis=1)) if len(people) else 1e9
            boxes.append((c, size, yaw, bool(rest < person - 0.22)))
        centre = people.mean(0) if len(people) else camera.place + camera.r[2] * 3
        for _ in range(0 if self.clean else int(rng.choice([0, 1, 2, 3, 5, 8]))):
            angle, far = rng.uniform(0, 6.28), rng.uniform(0.8, 4.5)
            size = np.array(
                [rng.uniform(0.3, 1.8), rng.uniform(0.3, 1.9) * rng.choice([0.5, 1.0]), rng.uniform(0.3, 1.0)]
            )
            c = np.array([centre[0] + far * np.sin(angle), size[1] / 2, centre[2] + far * np.cos(angle)])
            gap = np.linalg.norm(people[:, [0, 2]] - c[[0, 2]], axis=1).min() if len(people) else 9
            eye = np.linalg.norm(camera.place[[0, 2]] - c[[0, 2]])
            if gap < 0.5 + 0.5 * max(size[0], size[2]) or eye < 0.8 + 0.6 * max(size[0], size[2]):
                continue
            before = float((c - camera.place) @ camera.r[2]) < depth - 0.3
            if before and (rng.random() < 0.6 or size[1] > 0.9):  # do not hide the action too often
                continue
            boxes.append((c, size, rng.uniform(0, 3.14), before))
        return boxes

    def extent(self, poses, boxes):
        points = [p[..., [0, 2]].reshape(-1, 2) for p in poses]
        points += [np.array([[c[0] - 0.7, c[2] - 0.7], [c[0] + 0.7, c[2] + 0.7]]) for c, *_ in boxes]
        points.append((self.camera.place + self.camera.r[2] * 2)[None, [0, 2]])
        p = np.concatenate(points)
        return p[:, 0].min() - 0.3, p[:, 0].max() + 0.3, p[:, 1].min() - 0.3, p[:, 1].max() + 0.3

    def make_mover(self, rng):
        """Something that is not a person and moves: a car, a ball, a curtain, a fan, a screen."""
        return dict(
            kind=str(rng.choice(["car", "car", "ball", "curtain", "fan", "screen"])),
            colour=tuple(float(v) for v in rng.uniform(10, 245, 3)),
            x=rng.uniform(0, 1), y=rng.uniform(0.15, 0.85), size=rng.uniform(0.06, 0.3),
            speed=rng.choice([-1, 1]) * rng.uniform(0.1, 0.9), seed=int(rng.integers(1 << 30)),
        )  # fmt: skip

    def draw_mover(self, canvas, t):
        k, h, w = self.mover, self.height, self.width
        size = k["size"] * w
        x, y = k["x"] * w, k["y"] * h
        if k["kind"] == "car":
            x = (k["x"] + k["speed"] * t) % 1.6 * w - 0.3 * w
            points = np.array(
                [[-1, 0.3], [-1, 0], [-0.5, -0.1], [-0.3, -0.4], [0.4, -0.4], [0.6, -0.1], [1, 0], [1, 0.3]]
            )
        elif k["kind"] == "ball":
            x = (k["x"] + 0.5 * k["speed"] * t) % 1.2 * w
            y -= abs(math.sin(t * 4 + k["seed"])) * 0.2 * h
            points = 0.25 * np.stack([np.cos(np.linspace(0, 6.28, 14)), np.sin(np.linspace(0, 6.28, 14))], -1)
        elif k["kind"] == "fan":
            a = t * 9 * k["speed"] + np.array([0, 0.25, math.pi, math.pi + 0.25])
            points = 0.5 * np.stack([np.cos(a), np.sin(a)], -1)
        elif k["kind"] == "curtain":
            s = 0.12 * math.sin(t * 2.5 + k["seed"])
            points = np.array([[-0.6, -1.5], [0.6, -1.5], [0.6 + s, 1.2], [-0.6 + 2 * s, 1.2]])
        else:
            g = np.random.default_rng([k["seed"], int(t * 3)])
            colour = tuple(float(v) for v in g.uniform(20, 240, 3))
            cv2.rectangle(canvas, (int(x), int(y)), (int(x + size), int(y + size * 0.6)), colour, -1)
            return
        p = np.rint((points * size + [x, y]) * 16).astype(np.int32)
        cv2.fillConvexPoly(canvas, cv2.convexHull(p) if k["kind"] != "fan" else p, k["colour"], cv2.LINE_AA, 4)

    def draw_shadow(self, canvas, i):
        dark = np.zeros(canvas.shape[:2], np.uint8)
        for pose in self.poses:
            p = pose[i].copy()
            p[:, [0, 2]] += p[:, 1:2] * self.sun
            p[:, 1] = 0.0
            xy, z = self.camera.project(p)
            if z.min() < NEAR:
                continue
            width = int(max(1, 0.17 * self.camera.f / z.mean()))
            q = np.rint(np.clip(xy, -3000, 3000) * 16).astype(np.int32)
            for j in (1, 2, 3, 5, 6, 9, 10, 13, 14, 17, 18):
                cv2.line(dark, q[j].tolist(), q[m.PARENT[j]].tolist(), 255, width, cv2.LINE_AA, 4)
        soft = max(3, canvas.shape[1] // 60)
        dark = cv2.blur(dark, (soft, soft))
        keep = cv2.cvtColor(255 - (dark * self.shadow).astype(np.uint8), cv2.COLOR_GRAY2RGB)
        cv2.multiply(canvas, keep, canvas, 1 / 255)

    def raw(self, i):
        """The scene as the lens sees it."""
        canvas = self.back.copy()
        if self.mover:
            self.draw_mover(canvas, self.times[i])
        if self.shadow:
            self.draw_shadow(canvas, i)
        paint(canvas, self.items, i)
        if self.script.prop and self.poses:
            actor, joint, held_from, rest = self.script.prop
            point = self.poses[actor][i, joint] if self.times[i] >= held_from else np.asarray(rest, float)
            xy, z = self.camera.project(point)
            if z > NEAR:
                r = max(1, int(self.prop_size * self.camera.f / z * 16))
                cv2.circle(
                    canvas,
                    np.rint(np.clip(xy, -900, 3000) * 16).astype(int).tolist(),
                    r,
                    self.prop_colour,
                    -1,
                    cv2.LINE_AA,
                    4,
                )
        if self.near is not None:
            cv2.copyTo(self.back, self.near, canvas)
        return canvas

    def picture(self, i):
        """Picture `i` as it comes out of the camera, RGB u8. Call in order: compression remembers."""
        img = self.raw(i)
        if self.blur:  # a long exposure: the picture before shines through
            fresh = img
            if self.before is not None and self.times[i] - self.times[i - 1] < 0.06:
                img = cv2.addWeighted(img, 0.6, self.before, 0.4, 0)
            self.before = fresh
        h, w = self.height, self.width
        if self.margin:
            dx, dy, a = self.offsets[i]
            k, pad = math.radians(a), self.margin
            c, s = 1.03 * math.cos(k), 1.03 * math.sin(k)
            cx, cy = w / 2 + pad, h / 2 + pad
            warp = np.array([[c, -s, w / 2 - c * cx + s * cy + dx], [s, c, h / 2 - s * cx - c * cy + dy]])
            img = cv2.warpAffine(img, warp, (w, h), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        scale = self.contrast * self.gain[i] * self.tint
        shift = (1 - self.contrast) * 105.0 * self.gain[i]
        img = cv2.transform(img, np.hstack([np.diag(scale), np.full((3, 1), shift)]))
        if self.soft:
            img = cv2.GaussianBlur(img, (0, 0), self.soft)
        if self.noise:
            y, x = self.roll[i]
            img = cv2.add(img, self.noise[0][y : y + h, x : x + w])
            img = cv2.subtract(img, self.noise[1][y : y + h, x : x + w])
        if self.grey:
            img = cv2.cvtColor(cv2.cvtColor(img, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if self.skip and self.last is not None:  # blocks that hardly changed stay as they were, like a video codec's
            change = cv2.cvtColor(cv2.absdiff(img, self.last), cv2.COLOR_RGB2GRAY)
            blocks = cv2.resize(change, (max(1, w // 16), max(1, h // 16)), interpolation=cv2.INTER_AREA)
            still = cv2.resize((blocks < self.skip).astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST)
            img = cv2.copyTo(self.last, still, img)
        if self.jpeg:
            img = cv2.imdecode(cv2.imencode(".jpg", img, [cv2.IMWRITE_JPEG_QUALITY, self.jpeg])[1], cv2.IMREAD_COLOR)
        self.last = img if self.skip else None
        return img

    def coverage(self, i):
        """Person coverage, u8 [GRID, GRID]."""
        mask = np.zeros(self.back.shape[:2], np.uint8)
        silhouette(mask, self.items, i)
        if self.near is not None:
            mask[self.near > 0] = 0
        pad = self.margin
        mask = mask[pad : pad + self.height, pad : pad + self.width]
        return cv2.resize(
            cv2.resize(mask, (SIZE, SIZE), interpolation=cv2.INTER_AREA), (GRID, GRID), interpolation=cv2.INTER_AREA
        )


def shape_of(rng):
    """Width and height of the camera's picture before it is squeezed."""
    shapes = [(256, 192), (320, 180), (192, 192), (144, 192), (120, 212), (240, 160)]
    return shapes[rng.choice(6, p=[0.36, 0.36, 0.1, 0.08, 0.04, 0.06])]


def frame_camera(rng, script, poses, times, width, height, margin):
    """A camera from which the action can be seen: random until enough of the joints are in the picture."""
    full_w, full_h = width + 2 * margin, height + 2 * margin
    if not poses:
        place = np.array([0, rng.uniform(0.6, 2.8), 0])
        target = place + [0, rng.uniform(-0.8, 0.1), 2.0]
        return Camera(place, target, rng.normal(0, 0.03), height * rng.uniform(0.7, 1.6), full_w, full_h)
    active = (times >= script.onset - 0.2) & (times <= max(script.end, script.onset + 0.5) + 0.2)
    if script.label == "nothing" or not active.any():
        active = np.ones(len(times), bool)
    main = poses[: max(1, script.main)]
    kind = script.framing
    if kind == "full" and rng.random() < 0.2:
        kind = "crop"
    if kind == "crop":
        whole = rng.random() < 0.6
        return crop_camera(rng, [p if whole else p[active] for p in main], width, height, margin)
    cloud = np.concatenate([p[active] for p in main])
    if kind == "upper":
        focus = np.concatenate([p[active][:, [m.CHEST, m.NECK]] for p in main]).reshape(-1, 3).mean(0)
        frac = rng.uniform(1.2, 2.4)
        test = [m.NECK, m.HEAD, m.LSH, m.RSH, m.LEL, m.REL]
    elif kind == "hands":
        focus = np.concatenate([p[active][:, [m.CHEST, m.LWR, m.RWR]] for p in main]).reshape(-1, 3).mean(0)
        frac = rng.uniform(2.4, 4.0)
        test = [m.CHEST]
    else:
        focus = (cloud.reshape(-1, 3).min(0) + cloud.reshape(-1, 3).max(0)) / 2
        focus[1] = rng.uniform(0.7, 1.1) if cloud[..., 1].max() > 1.2 else rng.uniform(0.3, 0.8)
        if kind == "tight":
            focus[1] = rng.uniform(0.8, 1.25)
        frac = rng.uniform(0.65, 1.05) if kind == "tight" else float(np.exp(rng.uniform(np.log(0.32), np.log(1.1))))
        test = list(range(20))
    fov = math.radians(np.exp(rng.uniform(np.log(16), np.log(85))))
    steepest = 0.85 if rng.random() < 0.2 else 0.5
    best = None
    for attempt in range(24):
        f = full_h / 2 / math.tan(fov / 2)
        dist = max(0.9, 1.75 * f / (frac * height))
        r = rng.random()
        top = rng.uniform(0.9, 1.8) if r < 0.45 else rng.uniform(1.9, 3.4) if r < 0.77 else rng.uniform(3.4, 7.5)
        if r > 0.91:
            top = rng.uniform(0.25, 0.8)
        if kind in ("upper", "hands"):
            top = focus[1] + rng.uniform(-0.3, 0.5)
        rise = np.clip(top - focus[1], -0.8 * dist, steepest * dist)
        away = math.sqrt(dist * dist - rise * rise)
        yaw = rng.uniform(0, 2 * math.pi)
        if kind in ("upper", "hands"):
            yaw = m.facing(main[0][len(times) // 2]) + rng.normal(0, 0.5)
        elif kind == "tight" or (len(main) == 2 and rng.random() < 0.6):  # two people are seldom filmed in line
            yaw = m.facing(main[0][len(times) // 2]) + math.pi / 2 * rng.choice([-1, 1]) + rng.normal(0, 0.45)
        place = focus + [away * math.sin(yaw), rise, away * math.cos(yaw)]
        place[1] = max(place[1], 0.15)
        slack = 0.04 if kind != "full" else 0.22 * max(0.0, 1 - frac)
        offset = (rng.uniform(-1, 1) * slack * 1.6 * width, rng.uniform(-1, 1) * slack * 0.6 * height)
        camera = Camera(place, focus, rng.normal(0, 0.03), f, full_w, full_h, offset)
        points = np.concatenate([p[active][:, test] for p in main])
        xy, z = camera.project(points)
        inside = (
            (xy[..., 0] > margin)
            & (xy[..., 0] < margin + width)
            & (xy[..., 1] > margin)
            & (xy[..., 1] < margin + height)
        )
        seen = float((inside & (z > 0.3)).mean())
        need = (
            0.72
            if kind == "tight"
            else 0.6
            if kind in ("upper", "hands")
            else 0.87
            if script.label not in ("walking", "running")
            else 0.62
        )
        if best is None or seen > best[0]:
            best = (seen, camera)
        if seen >= need:
            return camera
        if attempt % 2:
            frac = max(frac * 0.93, 0.27)
    return best[1]


def crop_camera(rng, bodies, width, height, margin):
    """A camera further off whose picture is cut to the people's whole way, as an editor or a detector cuts it.

    `bodies`: a track [F, 20, 3] for each person. Two people are seen from the side.
    """
    cloud = np.concatenate([b.reshape(-1, 3) for b in bodies])
    middle = (cloud.min(0) + cloud.max(0)) / 2
    radius = np.linalg.norm(cloud - middle, axis=1).max()
    dist = radius + np.exp(rng.uniform(np.log(2.0), np.log(12.0)))
    elevation = np.clip(abs(rng.normal(0.1, 0.2)), 0, 0.8)
    yaw = rng.uniform(0, 2 * math.pi)
    if len(bodies) > 1:
        apart = bodies[1][:, m.PELVIS].mean(0) - bodies[0][:, m.PELVIS].mean(0)
        yaw = math.atan2(apart[0], apart[2]) + math.pi / 2 * rng.choice([-1, 1]) + rng.normal(0, 0.4)
    away = dist * math.cos(elevation)
    place = middle + [away * math.sin(yaw), dist * math.sin(elevation), away * math.cos(yaw)]
    place[1] = max(place[1], 0.3)
    full = width + 2 * margin, height + 2 * margin
    roll = rng.normal(0, 0.02)
    xy, _ = Camera(place, middle, roll, 1.0, 0, 0).project(cloud)
    low, high = xy.min(0), xy.max(0)
    # A limb may be cut off, or there is room to spare.
    f = min(np.array([width, height]) * rng.uniform(0.72, 1.04, 2) / np.maximum(high - low, 1e-3))
    slack = np.maximum(np.array([width, height]) - f * (high - low), 0) / 2
    offset = -f * (low + high) / 2 + slack * rng.uniform(-0.8, 0.8, 2)
    return Camera(place, middle, roll, f, *full, offset)


# ---------------------------------------------------------------- clips and shards


def label_of(rng):
    """Classes in equal shares, `nothing` more often."""
    share = np.ones(len(LABELS))
    share[0] = NOTHING_SHARE
    return LABELS[rng.choice(len(LABELS), p=share / share.sum())]


def picture_times(rng):
    """Source rate and the times (s) of its pictures, a little more than the clip needs."""
    rate = float(RATES[rng.integers(len(RATES))]) if rng.random() < 0.4 else FPS
    phase = 0.0 if rate == FPS else rng.uniform(0, 0.02)
    return rate, phase + np.arange(int((T + 3) / FPS * rate) + 3) / rate


def render_clip(lib, split, number, label=None, freeze=False):
    """Clip `number` of a split: dict of arrays as in the shard, and its meta line. `freeze`: exactly still."""
    rng = np.random.default_rng([SALT[split], number])
    drawn = label_of(rng)
    label = label or drawn
    script = scripts.write(rng, lib, split, label)
    rate, times = picture_times(rng)
    times = times[admitted(times)]
    plan = ticks(times)
    while len(plan) < T:
        raise ValueError("too few pictures")
    plan = plan[:T]
    times = times[: plan[-1][1] + 1]
    shot = Shot(rng, script, times)
    frozen = rng.random() < 0.08
    faint = frozen and rng.random() < 0.5
    if freeze:
        frozen, faint = True, False
    dis = make_dis()
    meta = dict(
        label=label, sources=script.sources, subject=script.subject, seed=[SALT[split], number], fps=rate,
        onset=round(script.onset * FPS, 1), end=round(script.end * FPS, 1), frozen=bool(frozen),
        persons=len(script.actors), framing=script.framing, size=[shot.width, shot.height],
        camera_height=round(float(shot.camera.place[1]), 2),
    )  # fmt: skip
    if frozen:
        pick = int(rng.integers(len(times)))
        still = shot.picture(pick)
        sigma = rng.uniform(0.3, 1.5)
        pictures = [still] * 2
        if faint:
            pictures = [
                cv2.add(still, np.clip(np.rint(rng.normal(0, sigma, still.shape)), 0, 9).astype(np.uint8))
                for _ in range(T + 1)
            ]
        plan = [(min(k + 1, len(pictures) - 1), min(k + 1, len(pictures) - 1), 1.0) for k in range(T)]
        coverage = [shot.coverage(pick)] * (T // 8)
        label = meta["label"] = "nothing"
    else:
        pictures = [shot.picture(i) for i in range(len(times))]
        coverage = [shot.coverage(plan[8 * i + 4][0]) for i in range(T // 8)]
    small = [squeeze(p) for p in pictures]
    flows = [None] + [flow_of(dis, a[1], b[1]) for a, b in zip(small, small[1:], strict=False)]
    if frozen and not faint:
        flows = [np.zeros((SIZE, SIZE, 2), np.float32)] * len(flows)
    return dict(
        rgb=np.stack([small[shown][0] for shown, _, _ in plan]),
        flow=np.stack([encode_flow(flows[pair] * factor) for _, pair, factor in plan]),
        mask=np.stack(coverage),
        label=INDEX[label],
        meta=meta,
    )


_LIBRARY = None


def library(args):
    """The motions, read once and kept beside the output."""
    if not (args.out or args.video or args.nothing_hour):
        raise BadInput("say what to render: --out, --video or --nothing-hour")
    m.sources(args.mocap, args.animations)
    if args.photos:
        photographs(args.photos)
    home = Path(args.out or args.video or Path(args.nothing_hour).parent)
    home.mkdir(parents=True, exist_ok=True)
    takes = m.cached_takes(args.cache or home / "motions.npz", args.mocap, args.animations)
    return scripts.Library(takes)


def _start(lib):
    global _LIBRARY
    _LIBRARY = lib
    cv2.setNumThreads(1)


def _shard(job):
    out, split, index, label = job
    final = Path(out) / split / f"shard_{index:05d}"
    if final.exists():
        return 0
    part = final.with_name(f"tmp_{index:05d}_{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    clips = [render_clip(_LIBRARY, split, index * SHARD + i, label) for i in range(SHARD)]
    for name in ("rgb", "flow", "mask"):
        np.save(part / f"{name}.npy", np.stack([c[name] for c in clips]))
    np.save(part / "label.npy", np.array([c["label"] for c in clips], np.int64))
    (part / "meta.jsonl").write_text("".join(json.dumps(c["meta"]) + "\n" for c in clips))
    if final.exists():
        shutil.rmtree(part)
    else:
        part.rename(final)
    return SHARD


def add_arguments(parser):
    """Command line of `render`."""
    parser.add_argument("--out", help="folder of shards: OUT/{train,held}/shard_00000")
    parser.add_argument("--split", choices=sorted(SALT), default="train")
    parser.add_argument("--mocap", required=True, help="folder with classes.tsv and the bvh archives")
    parser.add_argument("--animations", required=True, help="folder with the animation GLBs")
    parser.add_argument("--photos", help="folder with places/ and materials/: photographs for backgrounds and surfaces")
    parser.add_argument("--count", type=int, default=SHARD, help=f"clips (rounded up to shards of {SHARD}), or files")
    parser.add_argument("--start", type=int, default=0, help="number of the first clip (a multiple of 64), or file")
    parser.add_argument("--label", choices=LABELS, help="with --out: clips of this class only")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cache", help="file for the motions once read (default: beside the output)")
    parser.add_argument("--video", metavar="DIR", help="write video files DIR/<label>/<id>.mp4 instead of shards")
    parser.add_argument("--nothing-hour", metavar="FILE", help="write one long video in which nothing happens")
    parser.add_argument("--seconds", type=float, default=3600.0, help="length of --nothing-hour")


def main(args):
    """Render what the arguments ask for."""
    if args.label and not args.out:
        raise BadInput("--label chooses the clips of --out; the files of --video are of all classes in turn")
    lib = library(args)
    _start(lib)
    if args.out:
        first = args.start // SHARD
        jobs = [(args.out, args.split, first + i, args.label) for i in range(math.ceil(args.count / SHARD))]
        with tqdm(total=len(jobs) * SHARD, unit="clip", desc=f"render {args.split}") as bar:
            if args.workers == 1:
                for job in jobs:
                    _shard(job)
                    bar.update(SHARD)
            else:
                with multiprocessing.get_context("fork").Pool(args.workers, _start, (lib,)) as pool:
                    for _ in pool.imap_unordered(_shard, jobs):
                        bar.update(SHARD)
    if args.video:
        write_videos(lib, args)
    if args.nothing_hour:
        write_nothing(lib, Path(args.nothing_hour), args.seconds)
    return 0


# ---------------------------------------------------------------- video files


def encoder(path, width, height, rate, crf=23, extra=()):
    """ffmpeg that takes raw RGB pictures on its standard input."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    command = ["ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command += [
        "-r",
        f"{rate:g}",
        "-i",
        "-",
        "-c:v",
        "libx264",
        "-threads",
        "1",
        "-preset",
        "veryfast",
        "-crf",
        str(crf),
    ]
    command += [*extra, "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def write_videos(lib, args):
    """Clips as files, classes in turn, with their own numbers (never those of shards)."""
    index = Path(args.video) / "index.jsonl"
    index.parent.mkdir(parents=True, exist_ok=True)
    for i in tqdm(range(args.start, args.start + args.count), unit="file"):
        label = LABELS[i % len(LABELS)]
        path = Path(args.video) / label / f"{args.split}_{i:05d}.mp4"
        if path.exists():
            continue
        rng = np.random.default_rng([SALT[args.split], 1 << 20, i])
        script = scripts.write(rng, lib, args.split, label)
        rate = float(RATES[rng.integers(len(RATES))]) if rng.random() < 0.5 else FPS
        times = np.arange(int(3.1 * rate)) / rate
        width, height = shape_of(rng)
        scale = 256 / min(width, height)
        size = tuple(int(round(v * scale / 2)) * 2 for v in (width, height))
        shot = Shot(rng, script, times, size)
        shot.jpeg = 0
        out = encoder(path.with_suffix(".part.mp4"), *size, rate, crf=int(rng.integers(18, 32)))
        for k in range(len(times)):
            out.stdin.write(np.ascontiguousarray(shot.picture(k)).tobytes())
        out.stdin.close()
        if out.wait():
            raise RuntimeError(f"ffmpeg failed on {path}")
        if label != "nothing":
            end = min(script.end, 3.1)
            path.with_suffix(".tsv").write_text(f"label\tstart_s\tend_s\n{label}\t{script.onset:.2f}\t{end:.2f}\n")
        path.with_suffix(".part.mp4").rename(path)
        with index.open("a") as f:
            f.write(json.dumps(dict(file=f"{label}/{path.name}", label=label, fps=rate, sources=script.sources)) + "\n")


def write_nothing(lib, path, seconds, rate=FPS, size=(320, 240)):
    """One long video of `nothing`: scenes change every 20 to 40 s; motion runs to and fro inside a scene."""
    out = encoder(path, *size, rate, crf=26)
    total, done, scene = int(seconds * rate), 0, 0
    span = int(2.9 * rate)
    with tqdm(total=total, unit="picture") as bar:
        while done < total:
            rng = np.random.default_rng([SALT["held"], 1 << 21, scene])
            scene += 1
            script = scripts.write(rng, lib, "held", "nothing")
            script.flicker = None
            length = min(int(rng.uniform(20, 40) * rate), total - done)
            order = np.abs((np.arange(length) + span) % (2 * span) - span)  # there and back: no jump at the seam
            shot = Shot(rng, script, np.arange(span + 1) / rate, size)
            for i in order:
                out.stdin.write(np.ascontiguousarray(shot.picture(int(i))).tobytes())
            done += length
            bar.update(length)
    out.stdin.close()
    if out.wait():
        raise RuntimeError("ffmpeg failed")
