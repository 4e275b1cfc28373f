"""Pictures of people made of capsules in ray-cast rooms: camera, room, bodies, sensor. Fast rather than fine.

All colours are RGB. A scene is drawn by `Scene.picture(t)`; everything random is drawn once, at construction.
"""

from pathlib import Path

import cv2
import numpy as np

from . import motion as m
from .errors import BadInput

SHIFT = 4  # sub-pixel bits of OpenCV's polygon coordinates
NEAR = 0.12  # metres: nothing nearer is drawn

SKINS = [
    (236, 200, 175),
    (224, 172, 140),
    (198, 140, 105),
    (150, 100, 70),
    (110, 72, 50),
    (80, 52, 38),
    (245, 215, 195),
]
HAIRS = [
    (30, 24, 20),
    (60, 40, 25),
    (100, 70, 40),
    (160, 120, 70),
    (200, 180, 150),
    (90, 90, 90),
    (20, 20, 25),
    (140, 60, 30),
]


class Camera:
    """A pinhole camera: `place` = position (m), aimed at a point, rolled; `f` in pixels."""

    def __init__(self, place, target, roll, f, width, height, offset=(0.0, 0.0)):
        self.place = np.asarray(place, float)
        d = m.unit(np.asarray(target, float) - self.place)
        right = m.unit(np.cross(d, [0, 1, 0]))
        up = np.cross(right, d)
        c, s = np.cos(roll), np.sin(roll)
        self.r = np.stack([c * right + s * up, -s * right + c * up, d])
        self.f, self.width, self.height = f, width, height
        self.cx, self.cy = width / 2 + offset[0], height / 2 + offset[1]

    def project(self, p):
        """Points [..., 3] -> picture x, y (px) and depth (m)."""
        q = (p - self.place) @ self.r.T
        z = np.maximum(q[..., 2], NEAR)
        return np.stack([self.cx + self.f * q[..., 0] / z, self.cy - self.f * q[..., 1] / z], -1), q[..., 2]

    def rays(self):
        """Direction of every pixel, [H, W, 3]."""
        u, v = np.meshgrid(np.arange(self.width), np.arange(self.height))
        d = np.stack([(u + 0.5 - self.cx) / self.f, -(v + 0.5 - self.cy) / self.f, np.ones_like(u, float)], -1)
        return d @ self.r


# ---------------------------------------------------------------- bodies


class Look:
    """Clothes and build of one person: colours of each part and radii (m)."""

    def __init__(self, rng, backdrop=None):
        def cloth():
            r = rng.random()
            if backdrop is not None and r < 0.12:  # hard to see against the wall
                return np.clip(backdrop + rng.normal(0, 14, 3), 5, 250)
            if r < 0.45:
                return np.clip(rng.uniform(15, 240) + rng.normal(0, 12, 3), 5, 250)
            return np.clip(rng.uniform(20, 220) + rng.normal(0, 45, 3), 5, 250)

        self.skin = np.clip(np.array(SKINS[rng.integers(len(SKINS))]) * rng.uniform(0.85, 1.05), 0, 250)
        self.hair = np.array(HAIRS[rng.integers(len(HAIRS))], float)
        self.top, self.legs = cloth(), cloth()
        if rng.random() < 0.15:
            self.legs = self.top.copy()
        self.shoe = np.clip(rng.uniform(10, 230) + rng.normal(0, 8, 3), 5, 250)
        self.sleeve = rng.choice(3, p=[0.35, 0.5, 0.15])  # short, long, none
        self.shorts = rng.random() < 0.2
        self.skirt = rng.random() < 0.14
        self.stripes = rng.choice([0, 0, 0, 2, 4])
        self.stripe = cloth()
        self.bulk = float(np.clip(rng.normal(1.0, 0.12), 0.75, 1.4))
        self.limb = float(np.clip(rng.normal(1.0, 0.1), 0.8, 1.3)) * (1 + 0.3 * (self.bulk - 1))
        self.long_hair = rng.random() < 0.3


_ARC = np.linspace(0, np.pi, 6)
_ROUND = np.linspace(0, 2 * np.pi, 9)[:-1]


def capsule_outline(a, b, ra, rb):
    """Outline polygons [F, 12, 2] of two-dimensional capsules with end radii (px) `ra`, `rb`."""
    d = b - a
    angle = np.arctan2(d[:, 1], d[:, 0])[:, None]
    first = angle + np.pi / 2 + _ARC
    second = angle - np.pi / 2 + _ARC
    return np.concatenate(
        [
            a[:, None] + ra[:, None, None] * np.stack([np.cos(first), np.sin(first)], -1),
            b[:, None] + rb[:, None, None] * np.stack([np.cos(second), np.sin(second)], -1),
        ],
        1,
    )


def circles(points, radii):
    """Points on circles: [F, K, 2] and radii [F, K] -> [F, K * 8, 2]."""
    ring = np.stack([np.cos(_ROUND), np.sin(_ROUND)], -1)
    out = points[:, :, None] + radii[:, :, None, None] * ring
    return out.reshape(len(points), -1, 2)


class Body:
    """One person over all pictures of a clip: polygons, colours and depths, ready to be painted."""

    def __init__(self, camera, pose, look, light, gain, detail=False):
        self.items = []  # (depth [F], layers [(points [F, K, 2], colour)], hull)
        self.camera, self.light, self.gain = camera, light, gain
        self.layers = [(1.0, 0.0, 0.62), (0.8, 0.16, 0.86), (0.5, 0.34, 1.04)]
        if detail:
            self.layers = [(1.0, 0.0, 0.55), (0.9, 0.08, 0.7), (0.78, 0.18, 0.83), (0.6, 0.28, 0.95), (0.38, 0.4, 1.06)]
        k = look
        limb = k.limb
        upper = k.skin if k.sleeve == 2 else k.top
        fore = k.top if k.sleeve == 1 else k.skin
        shin = k.skin if (k.shorts or k.skirt) else k.legs
        for s in (0, 1):
            a, g = m.LSH + 4 * s, m.LHI + 4 * s
            self.capsule(pose, a, a + 1, 0.053 * limb, 0.043 * limb, upper)
            self.capsule(pose, a + 1, a + 2, 0.043 * limb, 0.031 * limb, fore)
            self.capsule(pose, a + 2, a + 3, 0.036, 0.030, k.skin)
            self.capsule(pose, g, g + 1, 0.088 * limb, 0.062 * limb, k.legs)
            self.capsule(pose, g + 1, g + 2, 0.060 * limb, 0.042 * limb, shin)
            self.capsule(pose, g + 2, g + 3, 0.047, 0.036, k.shoe)
        self.capsule(pose, m.NECK, m.HEAD, 0.05, 0.05, k.skin, end=0.5)
        self.trunk(pose, k)
        self.head(pose, k, detail)

    def radius(self, r, depth):
        return r * self.camera.f / np.maximum(depth, NEAR)

    def capsule(self, pose, i, j, ra, rb, colour, end=1.0):
        pa = pose[:, i]
        pb = pose[:, i] * (1 - end) + pose[:, j] * end
        a, za = self.camera.project(pa)
        b, zb = self.camera.project(pb)
        ra, rb = self.radius(ra, za), self.radius(rb, zb)
        layers = []
        for size, offset, bright in self.layers:
            shift_a = self.light[None] * (offset * ra)[:, None]
            shift_b = self.light[None] * (offset * rb)[:, None]
            layers.append((capsule_outline(a + shift_a, b + shift_b, ra * size, rb * size), self.tone(colour, bright)))
        depth = (za + zb) / 2
        depth = np.where(np.minimum(za, zb) < NEAR, -1, depth)
        self.items.append((depth, layers, False))

    def tone(self, colour, bright):
        return tuple(float(v) for v in np.clip(np.asarray(colour) * bright * self.gain, 0, 255))

    def hull(self, points, radii, colour, bias=0.0):
        xy, z = self.camera.project(points)
        r = self.radius(np.broadcast_to(radii, z.shape), z)
        centre = xy.mean(1, keepdims=True)
        layers = []
        for size, offset, bright in self.layers:
            shifted = centre + (xy - centre) * (0.35 + 0.65 * size) + self.light * (offset * 0.8 * r[:, :, None])
            layers.append((circles(shifted, r * size), self.tone(colour, bright)))
        depth = np.where(z.min(1) < NEAR, -1, z.mean(1) + bias)
        self.items.append((depth, layers, True))

    def trunk(self, pose, k):
        ls, rs, lh, rh = (pose[:, i] for i in (m.LSH, m.RSH, m.LHI, m.RHI))
        chest, pelvis, neck = pose[:, m.CHEST], pose[:, m.PELVIS], pose[:, m.NECK]
        b = k.bulk
        waist = pelvis * 0.6 + chest * 0.4
        self.hull(np.stack([lh, rh, pelvis, waist], 1), np.array([0.088, 0.088, 0.105, 0.1]) * b, k.legs, 0.01)
        inner = [ls * 0.9 + rs * 0.1, rs * 0.9 + ls * 0.1, chest, waist, neck]
        self.hull(np.stack(inner, 1), np.array([0.068, 0.068, 0.12 * b, 0.112 * b, 0.06]), k.top, 0.0)
        for i in range(k.stripes):
            u = 0.2 + 0.7 * i / k.stripes
            centre = neck * (1 - u) + pelvis * u
            across = (ls - rs) * 0.42
            front = m.unit(np.cross(ls - rs, neck - pelvis)) * 0.1 * b
            down = (pelvis - neck) * 0.035
            for face in (1, -1):
                quad = np.stack(
                    [centre + face * front + across * x + down * y for x, y in ((1, -1), (1, 1), (-1, 1), (-1, -1))], 1
                )
                xy, z = self.camera.project(quad)
                seen = ((quad.mean(1) - self.camera.place) * front * face).sum(-1) < 0
                depth = np.where(seen & (z.min(1) > NEAR), z.mean(1) - 0.06, -1)
                self.items.append((depth, [(xy, self.tone(k.stripe, 0.9))], True))
        if k.skirt:
            knees = [pose[:, m.LHI] * 0.35 + pose[:, m.LKN] * 0.65, pose[:, m.RHI] * 0.35 + pose[:, m.RKN] * 0.65]
            self.hull(np.stack([waist, lh, rh, *knees], 1), np.array([0.1, 0.1, 0.1, 0.11, 0.11]) * b, k.legs, -0.03)

    def head(self, pose, k, detail):
        neck, top = pose[:, m.NECK], pose[:, m.HEAD]
        up = m.unit(top - neck)
        left = pose[:, m.LSH] - pose[:, m.RSH]
        front = m.unit(np.cross(left, up))
        centre = neck * 0.38 + top * 0.62
        scale = np.linalg.norm(top - neck, axis=-1).mean() / 0.26
        self.hull(
            np.stack([centre + front * 0.02 + up * 0.025, centre + front * 0.025 - up * 0.035], 1),
            np.array([0.088, 0.072]) * scale,
            k.skin,
        )
        back = [centre - front * 0.028 + up * 0.04, centre - front * 0.03 + up * 0.01]
        if k.long_hair:
            back.append(centre - front * 0.05 - up * 0.13)
        self.hull(np.stack(back, 1), np.array([0.1, 0.095, 0.08][: len(back)]) * scale, k.hair)
        if detail:
            side = m.unit(left)
            for s in (1, -1):
                self.dot(centre + front * 0.105 + side * 0.033 * s + up * 0.012, 0.011 * scale, (35, 28, 26), front)
            self.dot(centre + front * 0.11 - up * 0.025, 0.012 * scale, k.skin * 0.8, front)
            self.dot(centre + front * 0.098 - up * 0.058, 0.017 * scale, (150, 75, 70), front)

    def dot(self, point, radius, colour, front):
        xy, z = self.camera.project(point)
        seen = ((point - self.camera.place) * front).sum(-1) < -0.1 * z
        r = self.radius(radius, z)
        points = circles(xy[:, None], r[:, None])
        self.items.append((np.where(seen & (z > NEAR), z - 0.12, -1), [(points, self.tone(colour, 1.0))], False))


def paint(canvas, items, i, limit=30000.0):
    """Paint frame `i` of all items, farthest first; returns nothing."""
    depths = [item[0][i] for item in items]
    for n in sorted(range(len(items)), key=depths.__getitem__, reverse=True):
        if depths[n] < NEAR:
            continue
        _, layers, hull = items[n]
        for points, colour in layers:
            p = np.clip(points[i], -limit, limit)
            p = np.rint(p * (1 << SHIFT)).astype(np.int32)
            if hull:
                p = cv2.convexHull(p)
            cv2.fillConvexPoly(canvas, p, colour, cv2.LINE_AA, SHIFT)


def silhouette(mask, items, i):
    """The people's outline into a one-channel mask (255 inside)."""
    for depth, layers, hull in items:
        if depth[i] >= NEAR:
            p = np.rint(np.clip(layers[0][0][i], -30000, 30000) * (1 << SHIFT)).astype(np.int32)
            cv2.fillConvexPoly(mask, cv2.convexHull(p) if hull else p, 255, cv2.LINE_AA, SHIFT)


# ---------------------------------------------------------------- rooms

_PLACES, _MATERIALS = [], []


def photographs(folder):
    """Reads photographs that rooms are made of: `places/` (what stands behind people), `materials/` (surfaces)."""
    for name, into in (("places", _PLACES), ("materials", _MATERIALS)):
        into.clear()
        for path in sorted((Path(folder) / name).glob("*.[jp][pn]g")):
            picture = cv2.imread(str(path))
            if picture is None:
                raise BadInput(f"{path}: not a picture; remove it")
            if name == "places":
                into.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
            else:
                grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).astype(np.float32)
                into.append(np.clip(grey / max(grey.mean(), 8), 0.2, 2.0))
        if not into:
            raise BadInput(
                f"{Path(folder) / name}: no .jpg or .png in it; --photos is a folder with places/, materials/"
            )


def texture(rng, size=256):
    """A tileable grey texture around 1.0: noise of some scale, planks, tiles, stripes or dots; or a photograph's."""
    if _MATERIALS and rng.random() < 0.6:
        return 1 + (_MATERIALS[rng.integers(len(_MATERIALS))] - 1) * np.float32(rng.uniform(0.5, 1.2))
    kind = rng.integers(6)
    small = rng.normal(0, 1, (size, size)).astype(np.float32)
    blur = cv2.GaussianBlur(small, (0, 0), float(rng.choice([0.8, 2, 6, 20])), borderType=cv2.BORDER_REFLECT)
    blur /= blur.std() + 1e-6
    out = 1 + rng.uniform(0.01, 0.12) * blur
    u, v = np.meshgrid(np.arange(size), np.arange(size))
    depth = rng.uniform(0.05, 0.45)
    if kind == 1:  # planks
        w, length = int(rng.choice([16, 32])), 128
        row = v // w
        tone = rng.normal(0, depth * 0.4, (size // w, size // length + 1))
        out += tone[row, ((u + row * 37) % size) // length]
        out[(v % w) < 1] -= depth
    elif kind == 2:  # tiles
        n = int(rng.choice([32, 64]))
        out += depth * 0.5 * (((u // n) + (v // n)) % 2) * (rng.random() < 0.4)
        out[((u % n) < 2) | ((v % n) < 2)] -= depth * 0.7
    elif kind == 3:  # stripes
        n = int(rng.choice([8, 16, 32, 64]))
        out += depth * 0.5 * ((u // n) % 2 if rng.random() < 0.5 else (v // n) % 2)
    elif kind == 4:  # dots and leaves
        for _ in range(int(rng.integers(20, 160))):
            c = tuple(int(x) for x in rng.integers(0, size, 2))
            cv2.circle(out, c, int(rng.integers(2, 14)), float(1 + rng.normal(0, depth)), -1)
    return np.clip(out, 0.2, 2.0).astype(np.float32)


def lookup(tex, u, v, scale):
    """Texture at metres u, v; `scale` texels a metre."""
    n = len(tex)
    return tex[np.mod((v * scale).astype(np.int64), n), np.mod((u * scale).astype(np.int64), n)]


def box_hits(origin, rays, centre, size, yaw):
    """Entry distance (inf where missed) and which face (0..2) for an upright box turned by yaw."""
    r = m.ry(-yaw)
    o = r @ (origin - np.asarray(centre, float))
    d = rays @ r.T
    d = np.where(np.abs(d) < 1e-6, 1e-6, d)
    half = np.asarray(size, float) / 2
    t1, t2 = (-half - o) / d, (half - o) / d
    low, high = np.minimum(t1, t2), np.maximum(t1, t2)
    near, far = low.max(-1), high.min(-1)
    hit = (near < far) & (near > NEAR)
    return np.where(hit, near, np.inf), low.argmax(-1), o, d


def build_backdrop(rng, camera, extent, boxes, bright=1.0):
    """The still picture behind (and before) the people.

    `extent` (x0, x1, z0, z1): floor that must stay inside the room. `boxes`: list of (centre, size, yaw, near) where
    `near` marks furniture that stands before the people. Returns RGB f32 picture, mask of `near` furniture, colours.
    """
    rays = camera.rays()
    o = camera.place
    h, w = rays.shape[:2]
    outdoor = rng.random() < 0.28
    dist = np.full((h, w), np.inf)
    img = np.zeros((h, w, 3), np.float32)
    floor_colour = np.clip(rng.uniform(30, 210) + rng.normal(0, 22, 3), 10, 240)
    wall_colour = np.clip(rng.uniform(50, 235) + rng.normal(0, 20, 3), 10, 245)
    x0, x1, z0, z1 = extent
    pad = rng.uniform(0.4, 3.0, 4)
    x0, x1 = min(x0, o[0]) - pad[0], max(x1, o[0]) + pad[1]
    z0, z1 = min(z0, o[2]) - pad[2], max(z1, o[2]) + pad[3]
    top = max(rng.uniform(2.4, 3.6), o[1] + 0.15)

    def put(t, colour, where):
        near = where & (t > NEAR) & (t < dist)
        dist[near] = t[near]
        img[near] = colour[near]

    photo = bool(_PLACES) and rng.random() < 0.45
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if photo:
            img[:] = place(rng, w, h)
        elif outdoor:
            sky = np.clip(0.5 + rays[..., 1:2] / 1.5, 0, 1)
            a, b = rng.uniform(120, 250, 3), np.array([150, 190, 240]) * rng.uniform(0.5, 1.05)
            img[:] = a * (1 - sky) + b * sky
            for _ in range(int(rng.integers(0, 7))):  # houses, hedges, trees far away
                far = rng.uniform(8, 40)
                angle = rng.uniform(0, 6.28)
                c = o + np.array([np.sin(angle) * far, 0, np.cos(angle) * far])
                size = (rng.uniform(2, 14), rng.uniform(1, 12), rng.uniform(2, 8))
                paint_box(rng, put, o, rays, (c[0], size[1] / 2, c[2]), size, angle, rng.uniform(30, 220, 3))
        else:
            for axis, value in ((0, x0), (0, x1), (2, z0), (2, z1)):
                t = (value - o[axis]) / rays[..., axis]
                p = o + rays * np.where(np.isfinite(t), t, 0)[..., None]
                u, v = p[..., 2 - axis], p[..., 1]
                tone = lookup(texture(rng), u, v, rng.uniform(20, 90)) * rng.uniform(0.75, 1.15)
                colour = tone[..., None] * wall_colour
                for _ in range(int(rng.integers(0, 5))):  # pictures, doors, windows, shelves
                    c = rng.uniform(-3, 3), rng.uniform(0.6, 2.2)
                    half = rng.uniform(0.1, 0.8), rng.uniform(0.1, 0.9)
                    inside = (np.abs(u - c[0]) < half[0]) & (np.abs(v - c[1]) < half[1])
                    edge = inside & ((np.abs(u - c[0]) > half[0] - 0.04) | (np.abs(v - c[1]) > half[1] - 0.04))
                    colour[inside] = rng.uniform(10, 245, 3)
                    colour[edge] = rng.uniform(10, 245, 3)
                put(t, colour.astype(np.float32), t > 0)
            t = (top - o[1]) / rays[..., 1]
            put(t, np.broadcast_to(np.float32(np.clip(wall_colour * 1.15, 0, 250)), img.shape), t > 0)
        t = -o[1] / rays[..., 1]
        p = o + rays * np.where(np.isfinite(t) & (t < 1e4), t, 0)[..., None]
        if not photo:
            tone = lookup(texture(rng), p[..., 0], p[..., 2], rng.uniform(12, 70))
            tone = 1 + (tone - 1) * np.clip(6 / np.maximum(t, 1e-3), 0, 1)
            put(t, (tone[..., None] * floor_colour).astype(np.float32), t > 0)
        near_mask = np.zeros((h, w), bool)
        for centre, size, yaw, near in boxes:
            wood = np.clip(rng.uniform(25, 220) + rng.normal(0, 32, 3), 5, 245)
            t = paint_box(rng, put, o, rays, centre, size, yaw, wood)
            mine = np.isfinite(t) & (t <= dist + 1e-6)
            near_mask = np.where(mine, near, near_mask)
    lamp = rng.uniform(0.0, 1.0, 2) * [w, h]
    u, v = np.meshgrid(np.arange(w), np.arange(h))
    glow = np.exp(-(((u - lamp[0]) / w) ** 2 + ((v - lamp[1]) / h) ** 2) * rng.uniform(0.3, 2.5))
    img *= ((1 - (k := rng.uniform(0, 0.5))) + k * glow)[..., None] * bright
    img = cv2.GaussianBlur(img, (0, 0), float(rng.uniform(0.4, 1.1)))
    return np.clip(img, 0, 255), near_mask, (floor_colour * bright, wall_colour * bright)


def place(rng, width, height):
    """A cut of a photograph of some place, f32 RGB [height, width, 3], mirrored and tinted at random."""
    photo = _PLACES[rng.integers(len(_PLACES))]
    h, w = photo.shape[:2]
    part = rng.uniform(0.5, 1.0)
    ch = int(min(h, w * height / width * rng.uniform(0.85, 1.2)) * part)
    cw = int(min(w, ch * width / height))
    top, left = rng.integers(h - ch + 1), rng.integers(w - cw + 1)
    cut = cv2.resize(photo[top : top + ch, left : left + cw], (width, height), interpolation=cv2.INTER_AREA)
    cut = cut[:, ::-1] if rng.random() < 0.5 else cut
    return cut * (rng.uniform(0.7, 1.25) * (1 + rng.normal(0, 0.06, 3))).astype(np.float32)


def paint_box(rng, put, o, rays, centre, size, yaw, colour):
    """One piece of furniture; returns its distance for every pixel."""
    t, face, local, d = box_hits(o, rays, centre, size, yaw)
    shade = np.array([0.75, 1.1, 0.9])[face] * rng.uniform(0.85, 1.1)
    p = local + d * np.where(np.isfinite(t), t, 0)[..., None]
    tone = (
        lookup(texture(rng), p[..., 0] + p[..., 2] + 50, p[..., 1] + 50, rng.uniform(20, 100))
        if rng.random() < 0.6
        else 1.0
    )
    put(t, ((shade * tone)[..., None] * colour).astype(np.float32), np.isfinite(t))
    return t
