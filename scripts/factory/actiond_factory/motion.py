"""Human motion as joint positions: readers for BVH and GLB, and procedural motion for what captures lack.

Everything becomes a *track*: float32 [F, 20, 3], metres, y up, floor at y = 0, at a known rate. Positions (not angles)
are enough because bodies are drawn as capsules between joints, and they make joining, mirroring and re-timing trivial.
A person of canonical size is 1.75 m tall with a leg (hip to ankle) of 0.87 m; facing +z, their left is +x.
"""

import hashlib
import json
import os
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import BadInput

JOINTS = (
    "pelvis chest neck head l_shoulder l_elbow l_wrist l_hand r_shoulder r_elbow r_wrist r_hand "
    "l_hip l_knee l_ankle l_toe r_hip r_knee r_ankle r_toe"
).split()
(PELVIS, CHEST, NECK, HEAD, LSH, LEL, LWR, LHA, RSH, REL, RWR, RHA, LHI, LKN, LAN, LTO, RHI, RKN, RAN, RTO) = range(20)
PARENT = np.array([-1, 0, 1, 2, 2, 4, 5, 6, 2, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18])
RATE = 100.0  # procedural tracks and finished scripts, frames per second
CAPTURE_RATE = 60.0  # captures are kept at half of their 120 fps
THIGH, SHIN, ANKLE = 0.44, 0.43, 0.08
UPPER, FORE, HAND = 0.29, 0.26, 0.16
ARM = UPPER + FORE


# ---------------------------------------------------------------- small geometry


def rx(a):
    """Rotation matrices [..., 3, 3] about x; positive leans +y towards +z."""
    return _axis(a, 1, 2)


def ry(a):
    """Rotation matrices about y; positive turns +z towards +x."""
    return _axis(a, 2, 0)


def rz(a):
    """Rotation matrices about z; positive leans +y towards -x."""
    return _axis(a, 0, 1)


def _axis(a, i, j):
    a = np.asarray(a, np.float64)
    m = np.zeros(a.shape + (3, 3))
    m[..., [0, 1, 2], [0, 1, 2]] = 1.0
    c, s = np.cos(a), np.sin(a)
    m[..., i, i], m[..., j, j], m[..., i, j], m[..., j, i] = c, c, -s, s
    return m


def unit(v):
    """Vectors of length one along the last axis (zero stays zero)."""
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-9)


def ease(u):
    """Minimum-jerk 0..1: how hands and bodies move between two rests."""
    u = np.clip(u, 0.0, 1.0)
    return u * u * u * (10.0 - 15.0 * u + 6.0 * u * u)


def keys(t, points):
    """Values at times `t` through keyframes [(time_s, value)], eased inside each interval; value: scalar or vector."""
    times = np.array([p[0] for p in points], float)
    values = np.array([p[1] for p in points], float)
    i = np.clip(np.searchsorted(times, t, side="right") - 1, 0, len(times) - 2) if len(times) > 1 else None
    if i is None:
        return np.repeat(values[:1], len(t), axis=0)
    u = ease((t - times[i]) / np.maximum(times[i + 1] - times[i], 1e-6))
    u = u.reshape(u.shape + (1,) * (values.ndim - 1))
    return values[i] * (1 - u) + values[i + 1] * u


def wander(rng, t, amp, period=2.5):
    """Slow aimless sway: three sines, about `amp` high."""
    out = np.zeros_like(t)
    for k in range(3):
        out += np.sin(2 * np.pi * t * (k + 1) / (period * rng.uniform(0.8, 1.3)) + rng.uniform(0, 6.3)) / (k + 1)
    return amp * out / 1.5


def facing(pose):
    """Yaw (radians) of one pose [20, 3], from the line through the hips and shoulders."""
    left = (pose[LHI] - pose[RHI]) + 0.5 * (pose[LSH] - pose[RSH])
    return float(np.arctan2(-left[2], left[0]))


def place(track, x=0.0, z=0.0, yaw=0.0, about=None):
    """Turn a track by `yaw` about the point `about` (x, z; default the origin), then shift it by x, z."""
    ax, az = (0.0, 0.0) if about is None else about
    out = track - np.array([ax, 0, az], np.float32)
    out = out @ ry(yaw).T.astype(np.float32)
    return out + np.array([ax + x, 0, az + z], np.float32)


def home(track):
    """The track moved so that frame 0 stands at the origin and faces +z."""
    pelvis = track[0, PELVIS]
    out = place(track, -pelvis[0], -pelvis[2])
    return place(out, yaw=-facing(out[0]))


def resample(track, rate, tempo=1.0, to=RATE):
    """The track from `rate` to `to` frames per second, played `tempo` times as fast."""
    n = len(track)
    count = max(2, int((n - 1) / rate / tempo * to) + 1)
    pos = np.minimum(np.arange(count) / to * tempo * rate, n - 1)
    return at_frames(track, pos)


def at_frames(track, pos):
    """Linear interpolation at fractional frame numbers (clamped)."""
    pos = np.clip(pos, 0, len(track) - 1)
    i = np.minimum(pos.astype(int), len(track) - 2) if len(track) > 1 else np.zeros(len(pos), int)
    if len(track) == 1:
        return np.repeat(track, len(pos), axis=0)
    w = (pos - i)[:, None, None].astype(np.float32)
    return track[i] * (1 - w) + track[i + 1] * w


def mirror(track):
    """Left and right exchanged."""
    order = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15]
    return track[:, order] * np.array([-1, 1, 1], np.float32)


def chain(tracks, blend=0.25, turns=None):
    """Join tracks (at RATE): each is aligned to the end of the one before and cross-faded over `blend` seconds.

    They meet in the middle of the fade, so that somebody who stops or sets off does not glide back.
    """
    out = tracks[0]
    for k, nxt in enumerate(tracks[1:]):
        n = max(1, min(int(blend * RATE), len(out) - 1, len(nxt) - 1))
        base = out[-n]
        nxt = place(home(nxt), yaw=facing(base) + (turns[k] if turns else 0.0))
        shift = out[-n + n // 2, PELVIS] - nxt[n // 2, PELVIS]
        nxt = place(nxt, shift[0], shift[2])
        w = ease(np.arange(1, n + 1) / n)[:, None, None].astype(np.float32)
        mixed = out[-n:] * (1 - w) + nxt[:n] * w
        out = np.concatenate([out[:-n], mixed, nxt[n:]])
    return out


def extend(track, rate, seconds):
    """Loop a cyclic track until it lasts `seconds`: the best matching pair of early and late poses is the seam."""
    need = int(seconds * rate) + 2
    if len(track) >= need or len(track) < 12:
        return track
    n = len(track)
    local = np.stack([place(p[None] - [p[0, 0], 0, p[0, 2]], yaw=-facing(p))[0] for p in track])
    feature = np.concatenate([local[:-2].reshape(n - 2, -1), 4 * (local[2:] - local[:-2]).reshape(n - 2, -1)], axis=1)
    early, late = np.arange(0, n // 3), np.arange(n // 2, n - 2)
    cost = ((feature[early][:, None] - feature[late][None]) ** 2).sum(-1)
    a, b = np.unravel_index(np.argmin(cost), cost.shape)
    a, b = int(early[a]), int(late[b])
    out = track[: b + 1]
    fade = min(6, n - b - 1, b - a)
    while len(out) < need:
        nxt = home(track[a:])
        nxt = place(place(nxt, yaw=facing(out[-1])), out[-1][PELVIS, 0], out[-1][PELVIS, 2])
        body = nxt[1 : b - a + 1].copy()
        w = np.linspace(1, 0, fade + 2)[1:-1][:, None, None].astype(np.float32) if fade > 0 else 0
        if fade > 0:
            body[:fade] += (out[-1] - nxt[0])[None] * w
        out = np.concatenate([out, body])
    return out[:need]


def resize_bones(track, rng, spread=0.08):
    """Another person: bone lengths scaled by group; each frame keeps the height of its lowest joint."""
    legs, arms, trunk, wide = 1 + rng.normal(0, spread * 0.5, 4)
    factor = np.ones(20)
    factor[[CHEST, NECK]] = trunk
    factor[[LEL, LWR, LHA, REL, RWR, RHA]] = arms
    factor[[LKN, LAN, RKN, RAN]] = legs
    factor[[LSH, RSH, LHI, RHI]] = wide
    out = np.empty_like(track)
    out[:, 0] = track[:, 0]
    for j in range(1, 20):
        p = PARENT[j]
        out[:, j] = out[:, p] + (track[:, j] - track[:, p]) * np.float32(factor[j])
    out[..., 1] += (track[..., 1].min(1) - out[..., 1].min(1))[:, None]
    return out * np.float32(np.clip(rng.normal(1.0, 0.06), 0.72, 1.15))


# ---------------------------------------------------------------- readers

_NAMES = [
    # CMU in the naming of cgspeed's Poser conversion
    dict(
        pelvis="hip", chest="chest", neck="neck", head="head", shoulder="{}Shldr", elbow="{}ForeArm", wrist="{}Hand",
        hand="{}Mid1", hip="{}Thigh", knee="{}Shin", ankle="{}Foot", toe="{}Foot/end", sides=("l", "r"),
    ),
    # MotionBuilder
    dict(
        pelvis="Hips", chest="Spine1", neck="Neck", head="Head", shoulder="{}Arm", elbow="{}ForeArm", wrist="{}Hand",
        hand="{}HandIndex1", hip="{}UpLeg", knee="{}Leg", ankle="{}Foot", toe="{}ToeBase", sides=("Left", "Right"),
    ),
    # CMU's own ASF names
    dict(
        pelvis="hip", chest="thorax", neck="lowerneck", head="head", shoulder="{}humerus", elbow="{}radius",
        wrist="{}wrist", hand="{}fingers", hip="{}femur", knee="{}tibia", ankle="{}foot", toe="{}toes",
        sides=("l", "r"),
    ),
    # GLB, Unreal names
    dict(
        pelvis="pelvis", chest="spine_02", neck="neck_01", head="head", shoulder="upperarm_{}", elbow="lowerarm_{}",
        wrist="hand_{}", hand="middle_02_{}", hip="thigh_{}", knee="calf_{}", ankle="foot_{}", toe="ball_{}",
        sides=("l", "r"),
    ),
    # GLB, Rigify names
    dict(
        pelvis="DEF-hips", chest="DEF-spine.002", neck="DEF-neck", head="DEF-head", shoulder="DEF-upper_arm.{}",
        elbow="DEF-forearm.{}", wrist="DEF-hand.{}", hand="DEF-f_middle.02.{}", hip="DEF-thigh.{}",
        knee="DEF-shin.{}", ankle="DEF-foot.{}", toe="DEF-toe.{}", sides=("L", "R"),
    ),
]  # fmt: skip


def canonical(names, world):
    """Joint positions [F, J, 3] in any known naming -> canonical track: scaled by the legs, floor at 0."""
    index = {n: i for i, n in enumerate(names)}
    for scheme in _NAMES:
        if (
            scheme["pelvis"] in index
            and scheme["chest"] in index
            and scheme["knee"].format(scheme["sides"][0]) in index
        ):
            break
    else:
        raise ValueError(f"unknown joint names: {sorted(index)[:6]} ...")
    out = np.zeros((len(world), 20, 3))
    for j, name in enumerate(JOINTS):
        side = {"l_": 0, "r_": 1}.get(name[:2])
        key = scheme[name if side is None else name[2:]]
        out[:, j] = world[:, index[key if side is None else key.format(scheme["sides"][side])]]
    leg = np.linalg.norm(out[:, LHI] - out[:, LKN], axis=-1) + np.linalg.norm(out[:, LKN] - out[:, LAN], axis=-1)
    out *= (THIGH + SHIN) / np.median(leg)
    top = index.get(scheme["head"] + "/end", index[scheme["head"]])
    up = world[:, top] - world[:, index[scheme["neck"]]]
    out[:, HEAD] = out[:, NECK] + 0.26 * unit(up)
    for wrist, hand, elbow in ((LWR, LHA, LEL), (RWR, RHA, REL)):
        direction = unit(unit(out[:, hand] - out[:, wrist]) + 0.3 * unit(out[:, wrist] - out[:, elbow]))
        out[:, hand] = out[:, wrist] + HAND * direction
    for ankle, toe in ((LAN, LTO), (RAN, RTO)):
        out[:, toe] = out[:, ankle] + 0.19 * unit(out[:, toe] - out[:, ankle])
    out[..., 1] -= np.percentile(out[:, [LAN, RAN, LTO, RTO], 1].min(1), 3) - 0.03
    return out.astype(np.float32)


def read_bvh(text, skip=1, step=2):
    """BVH text -> canonical track. Frame 0 is a T-pose and skipped; every `step`-th frame is kept."""
    head, _, body = text.partition("MOTION")
    names, parents, offsets, channels, stack = [], [], [], [], []
    for line in head.splitlines():
        word = line.split()
        if not word:
            continue
        if word[0] in ("ROOT", "JOINT"):
            names.append(word[1])
        elif word[0] == "End":
            names.append(names[stack[-1]] + "/end")
        if word[0] in ("ROOT", "JOINT", "End"):
            parents.append(stack[-1] if stack else -1)
            offsets.append((0.0, 0.0, 0.0))
            channels.append([])
        elif word[0] == "{":
            stack.append(len(names) - 1)
        elif word[0] == "}":
            stack.pop()
        elif word[0] == "OFFSET":
            offsets[-1] = tuple(map(float, word[1:4]))
        elif word[0] == "CHANNELS":
            channels[stack[-1]] = word[2:]
    total = sum(map(len, channels))
    numbers = np.array(body[body.index("Frame Time") :].split("\n", 1)[1].split(), np.float64)
    motion = numbers[: len(numbers) // total * total].reshape(-1, total)[skip::step]
    frames, cursor = len(motion), 0
    position = np.zeros((frames, len(names), 3))
    rotation = np.zeros((frames, len(names), 3, 3))
    turn = {"X": rx, "Y": ry, "Z": rz}
    for j in range(len(names)):
        local = np.tile(np.array(offsets[j]), (frames, 1))
        r = np.tile(np.eye(3), (frames, 1, 1))
        for channel in channels[j]:
            value = motion[:, cursor]
            cursor += 1
            if channel.endswith("position"):
                local[:, "XYZ".index(channel[0])] = value
            else:
                r = r @ turn[channel[0]](np.radians(value))
        if parents[j] < 0:
            position[:, j], rotation[:, j] = local, r
        else:
            up = rotation[:, parents[j]]
            position[:, j] = position[:, parents[j]] + (up @ local[..., None])[..., 0]
            rotation[:, j] = up @ r
    return canonical(names, position)


def _quat_matrix(q):
    x, y, z, w = np.moveaxis(unit(q), -1, 0)
    return np.stack(
        [
            np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], -1),
            np.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], -1),
            np.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], -1),
        ],
        -2,
    )


def read_glb(data, rate=30.0):
    """GLB bytes -> {animation name: canonical track at `rate`}. Only what skeleton animation needs is read."""
    length = struct.unpack("<I", data[12:16])[0]
    doc = json.loads(data[20 : 20 + length])
    blob = memoryview(data)[20 + length + 8 :]
    width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}

    def accessor(i):
        a = doc["accessors"][i]
        view = doc["bufferViews"][a["bufferView"]]
        start = view.get("byteOffset", 0) + a.get("byteOffset", 0)
        w = width[a["type"]]
        return np.frombuffer(blob, np.float32, a["count"] * w, start).reshape(a["count"], w).astype(np.float64)

    nodes = doc["nodes"]
    parent = [-1] * len(nodes)
    for i, node in enumerate(nodes):
        for c in node.get("children", []):
            parent[c] = i
    order, seen = [], set()
    while len(order) < len(nodes):
        for i in range(len(nodes)):
            if i not in seen and (parent[i] < 0 or parent[i] in seen):
                order.append(i)
                seen.add(i)
    rest = {"translation": (0, 0, 0), "rotation": (0, 0, 0, 1), "scale": (1, 1, 1)}
    out = {}
    for animation in doc.get("animations", []):
        end = max(accessor(s["input"])[-1, 0] for s in animation["samplers"])
        times = np.arange(max(2, int(end * rate) + 1)) / rate
        local = {
            (i, path): np.tile(np.array(node.get(path, default), float), (len(times), 1))
            for i, node in enumerate(nodes)
            for path, default in rest.items()
        }
        for channel in animation["channels"]:
            target, sampler = channel["target"], animation["samplers"][channel["sampler"]]
            if "node" not in target or target["path"] not in rest:
                continue
            at, value = accessor(sampler["input"])[:, 0], accessor(sampler["output"])
            i = np.clip(np.searchsorted(at, times, side="right") - 1, 0, max(len(at) - 2, 0))
            if len(at) < 2 or sampler.get("interpolation") == "STEP":
                local[target["node"], target["path"]] = value[np.clip(np.searchsorted(at, times, "right") - 1, 0, None)]
                continue
            w = np.clip((times - at[i]) / np.maximum(at[i + 1] - at[i], 1e-6), 0, 1)[:, None]
            a, b = value[i], value[i + 1]
            if target["path"] == "rotation":  # the short way round
                b = np.where((a * b).sum(-1, keepdims=True) < 0, -b, b)
            local[target["node"], target["path"]] = a * (1 - w) + b * w
        world = [None] * len(nodes)
        for i in order:
            m = np.zeros((len(times), 4, 4))
            m[:, :3, :3] = _quat_matrix(local[i, "rotation"]) * local[i, "scale"][:, None, :]
            m[:, :3, 3] = local[i, "translation"]
            m[:, 3, 3] = 1
            world[i] = m if parent[i] < 0 else world[parent[i]] @ m
        names = [n.get("name", str(i)) for i, n in enumerate(nodes)]
        out[animation["name"]] = canonical(names, np.stack([m[:, :3, 3] for m in world], 1))
    return out


@dataclass
class Take:
    """One captured or animated motion: `kind` is the class of classes.tsv or of the animation's name."""

    name: str
    kind: str
    subject: str
    split: str
    rate: float
    track: np.ndarray


# what an animation's name says; everything not here is left out (weapons, swimming, flying, T-poses)
GLB_KINDS = {
    "Walk": "walking", "Walk_Loop": "walking", "Walk_Formal_Loop": "walking", "Jog_Fwd_Loop": "running",
    "Sprint_Loop": "running", "Jumping Jacks": "jumping_jacks", "Death01": "death", "Dance_Loop": "dancing",
    "Dance Body Roll": "dancing", "Dance Charleston": "dancing", "Dance Reach Hip": "dancing",
    "Punch_Cross": "punch", "Punch_Jab": "punch", "Fighting Left Jab": "punch", "Fighting Right Jab": "punch",
    "PickUp_Table": "pickup", "Sitting_Enter": "sit_enter", "Sitting_Exit": "sit_exit", "Greeting": "greeting",
    "Idle": "idle", "Idle_Loop": "idle", "Idle_Talking_Loop": "idle", "Sitting_Idle_Loop": "seated",
    "Sitting_Talking_Loop": "seated", "Crouch_Idle_Loop": "idle", "Fixing_Kneeling": "idle", "Driving_Loop": "seated",
    "Confused": "idle", "Consume Item": "idle", "Head Nod": "idle", "Idle Listening": "idle", "Reject": "idle",
    "Shivering": "idle", "Tired Hunched": "idle", "Kneeling Tired": "idle", "Meditate": "seated", "Sleeping": "idle",
    "Interact": "idle", "Idle_Torch_Loop": "idle", "Angry": "idle", "Pistol_Idle_Loop": "idle",
}  # fmt: skip


def sources(mocap, animations):
    """The table of takes, the captures' archives and the animations' files; BadInput where one of them is not there."""
    out = []
    for folder, what in ((mocap, "classes.tsv"), (mocap, "*.tar.xz"), (animations, "*animations*.glb")):
        out.append(sorted(Path(folder).glob(what)))
        if not out[-1]:
            raise BadInput(f"{folder}: no {what} in it" if Path(folder).is_dir() else f"{folder}: no such folder")
    return out


def load_takes(mocap, animations):
    """Every usable take of the two folders, as `Take`s (about a minute: 150 BVH files)."""
    takes = []
    (table,), archives, files = sources(mocap, animations)
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    at = {name: i for i, name in enumerate(rows[0])}
    info = {r[at["take"]]: r for r in rows[1:]}
    for archive in archives:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name).stem
                if not member.name.endswith(".bvh") or name not in info:
                    continue
                row = info[name]
                track = read_bvh(tar.extractfile(member).read().decode("latin-1"))
                split = "held" if row[at["split"]] == "test" else "train"
                takes.append(Take(name, row[at["class"]], row[at["subject"]], split, CAPTURE_RATE, track))
    done = set()
    for path in files:
        for name, track in read_glb(path.read_bytes()).items():
            if name in GLB_KINDS and name not in done:
                done.add(name)
                takes.append(Take(f"glb:{name}", GLB_KINDS[name], "glb", "train", 30.0, travel(track, name)))
    return takes


def fingerprint(mocap, animations):
    """Of what `load_takes` reads: names, sizes and times of the files."""
    files = [file for group in sources(mocap, animations) for file in group]
    kept = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()


def cached_takes(cache, mocap, animations):
    """`load_takes`, kept in the file `cache`; what that keeps of other files than are there now is read anew.

    Numbers and JSON only: a cache can come from somebody else, and reading it must run nothing.
    """
    cache = Path(cache)
    key = fingerprint(mocap, animations)
    if cache.exists():
        try:
            with np.load(cache, allow_pickle=False) as file:
                kept = json.loads(str(file["takes"]))
                if kept["of"] == key:
                    return [Take(**take, track=file[f"track_{i}"]) for i, take in enumerate(kept["takes"])]
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BadInput(f"{cache}: no cache of motions, or damaged ({error}); remove it or name another") from None
    takes = load_takes(mocap, animations)
    texts = [{k: v for k, v in vars(take).items() if k != "track"} for take in takes]
    tracks = {f"track_{i}": take.track for i, take in enumerate(takes)}
    part = cache.with_name(f".{cache.name}.part-{os.getpid()}")
    try:
        with part.open("wb") as file:
            np.savez(file, takes=np.array(json.dumps({"of": key, "takes": texts})), **tracks)
        part.rename(cache)
    finally:
        part.unlink(missing_ok=True)
    return takes


def travel(track, name):
    """In-place gaits (`*_Loop`) get the forward travel that their standing foot implies."""
    if GLB_KINDS[name] not in ("walking", "running"):
        return track
    track = home(track)
    if abs(track[-1, PELVIS, 2] - track[0, PELVIS, 2]) > 0.5:
        return track
    feet = track[:, [LAN, RAN]]
    low = np.argmin(feet[:-1, :, 1], axis=1)
    speed = -np.diff(feet, axis=0)[np.arange(len(track) - 1), low][:, 2]
    shift = np.arange(len(track)) * np.median(speed)
    return track + np.stack([shift * 0, shift * 0, shift], -1)[:, None].astype(np.float32)


# ---------------------------------------------------------------- procedural motion


class Pose:
    """Parameters of a body over time; `solve()` gives the track (2-bone inverse kinematics for arms and legs).

    Hands are given in the chest's frame relative to the shoulder, in arm lengths (x to the person's left); `reach`
    blends a hand to a point of the room instead. Feet are ankles in the room.
    """

    def __init__(self, t):
        n = len(t)
        self.t = t
        zero = np.zeros(n)
        self.pelvis = np.tile([0.0, 0.925, 0.0], (n, 1))
        for name in "yaw pitch roll bend twist side nod look".split():
            setattr(self, name, zero.copy())
        self.foot = [np.tile([0.11, ANKLE, 0.0], (n, 1)), np.tile([-0.11, ANKLE, 0.0], (n, 1))]
        self.hand = [np.tile([0.12, -0.96, 0.06], (n, 1)), np.tile([-0.12, -0.96, 0.06], (n, 1))]
        self.reach = [None, None]
        self.elbow = np.array([0.45, -0.6, -0.65])
        self.splay = 0.15

    def solve(self):
        """Joint positions [F, 20, 3]."""
        n = len(self.t)
        out = np.zeros((n, 20, 3))
        rp = ry(self.yaw) @ rx(self.pitch) @ rz(self.roll)
        rc = rp @ rx(self.bend) @ ry(self.twist) @ rz(self.side)
        rh = rc @ rx(self.nod) @ ry(self.look)

        def go(r, v):
            return r @ np.asarray(v, float)

        out[:, PELVIS] = self.pelvis
        out[:, CHEST] = self.pelvis + go(rp, (0, 0.13, 0)) + go(rc, (0, 0.13, 0))
        out[:, NECK] = out[:, CHEST] + go(rc, (0, 0.24, 0))
        out[:, HEAD] = out[:, NECK] + go(rh, (0, 0.25, 0.04))
        front = go(rp, (0, 0, 1))
        for k, s in ((0, 1.0), (1, -1.0)):
            hip = self.pelvis + go(rp, (0.095 * s, -0.03, 0))
            pole = front + self.splay * go(rp, (s, 0, 0))
            knee, ankle = two_bone(hip, self.foot[k], THIGH, SHIN, pole)
            shin = unit(ankle - knee)
            toe = unit(front - (front * shin).sum(-1, keepdims=True) * shin + 1e-6)
            base = LHI + 4 * k
            out[:, base], out[:, base + 1], out[:, base + 2] = hip, knee, ankle
            out[:, base + 3] = ankle + 0.19 * unit(toe + 0.25 * shin)
            shoulder = out[:, NECK] + go(rc, (0.175 * s, -0.05, 0))
            target = shoulder + ARM * (rc @ self.hand[k][..., None])[..., 0]
            if self.reach[k] is not None:
                weight, point = self.reach[k]
                target = target * (1 - weight[:, None]) + point * weight[:, None]
            elbow, wrist = two_bone(shoulder, target, UPPER, FORE, go(rc, self.elbow * [s, 1, 1]))
            base = LSH + 4 * k
            out[:, base], out[:, base + 1], out[:, base + 2] = shoulder, elbow, wrist
            out[:, base + 3] = wrist + HAND * unit(unit(wrist - elbow) + 0.25 * go(rc, (0, 0, 1)))
        out[..., 1] = np.maximum(out[..., 1], 0.05)
        return out.astype(np.float32)


def two_bone(root, target, a, b, pole):
    """Middle joint and end of a two-bone limb reaching for `target`, bending towards `pole`."""
    d = target - root
    length = np.linalg.norm(d, axis=-1, keepdims=True)
    direction = d / np.maximum(length, 1e-6)
    length = np.clip(length, abs(a - b) + 0.12, (a + b) * 0.998)
    along = (a * a - b * b + length**2) / (2 * length)
    height = np.sqrt(np.maximum(a * a - along**2, 0))
    side = unit(pole - (pole * direction).sum(-1, keepdims=True) * direction)
    return root + direction * along + side * height, root + direction * length


def clock(seconds):
    """Times of a procedural track, s."""
    return np.arange(max(2, int(round(seconds * RATE)))) / RATE


RESTS = {  # hands at rest: left hand; the right is its mirror image
    "hang": (0.12, -0.96, 0.06), "hips": (0.12, -0.72, -0.02), "front": (-0.25, -0.72, 0.32),
    "crossed": (-0.4, -0.35, 0.42), "back": (-0.2, -0.8, -0.25), "guard": (-0.12, -0.05, 0.5),
    "lap": (-0.1, -0.62, 0.5),
    "chest": (-0.15, -0.35, 0.5), "phone": (-0.1, -0.1, 0.35),
}  # fmt: skip


def both(v):
    """A left-hand vector and its mirror image."""
    v = np.asarray(v, float)
    return v, v * [-1, 1, 1]


def sway(p, rng, amount=1.0):
    """The unrest of a living body."""
    t = p.t
    p.pelvis[:, 0] += wander(rng, t, 0.012 * amount)
    p.pelvis[:, 2] += wander(rng, t, 0.010 * amount)
    p.pelvis[:, 1] -= np.abs(wander(rng, t, 0.006 * amount))
    p.twist += wander(rng, t, 0.05 * amount)
    p.bend += wander(rng, t, 0.02 * amount)
    p.nod += wander(rng, t, 0.06 * amount)
    p.look += wander(rng, t, 0.2 * amount, 3.5)
    for h in p.hand:
        for axis in range(3):
            h[:, axis] += wander(rng, t, 0.02 * amount)


def stand(rng, seconds, rest=None, unrest=None):
    """Standing, arms at some rest."""
    p = Pose(clock(seconds))
    width = rng.uniform(0.07, 0.2)
    step = rng.normal(0, 0.05)
    p.foot[0] += [width - 0.11, 0, step]
    p.foot[1] -= [width - 0.11, 0, step]
    rest = rest or rng.choice(["hang"] * 5 + ["hips", "front", "crossed", "back", "chest", "phone"])
    left, right = both(RESTS[rest])
    p.hand[0][:], p.hand[1][:] = left + rng.normal(0, 0.04, 3), right + rng.normal(0, 0.04, 3)
    if rest == "phone":
        p.hand[1][:] = RESTS["hang"] * np.array([-1, 1, 1])
    p.bend += rng.uniform(-0.03, 0.15)
    p.nod += rng.uniform(-0.1, 0.3)
    p.yaw += rng.normal(0, 0.05)
    sway(p, rng, rng.uniform(0.2, 1.6) if unrest is None else unrest)
    return p


def gesture(p, rng, hands=(0, 1), span=(0.25, 0.7), box=((-0.35, 0.35), (-0.55, 0.1), (0.3, 0.75)), hold=0.3):
    """Hands move between random points before the body (talking, signing). `span`: seconds per movement."""
    for k in hands:
        s = 1 if k == 0 else -1
        now, points = 0.0, []
        while now < p.t[-1] + 1:
            v = np.array([rng.uniform(*b) for b in box]) * [s, 1, 1]
            points.append((now, v))
            now += rng.uniform(*span)
            if rng.random() < hold:
                points.append((now, v + rng.normal(0, 0.03, 3)))
                now += rng.uniform(*span)
        p.hand[k] = keys(p.t, points)
    return p


def seat(rng, seconds, height=0.45, unrest=None):
    """Sitting on something `height` m high (0: on the floor); the pelvis is at the origin, the feet before it."""
    p = Pose(clock(seconds))
    p.pelvis[:, 1] = height + 0.11
    reach = rng.uniform(0.3, 0.5) if height > 0.25 else rng.uniform(0.4, 0.7)
    for k, s in ((0, 1), (1, -1)):
        p.foot[k][:] = [s * rng.uniform(0.07, 0.22), ANKLE, reach + rng.normal(0, 0.06)]
    p.pitch += rng.uniform(-0.2, 0.12)
    p.bend += rng.uniform(0, 0.25)
    rest = rng.choice(["lap", "lap", "lap", "crossed", "chest", "hang"])
    left, right = both(RESTS[rest])
    p.hand[0][:], p.hand[1][:] = left + rng.normal(0, 0.05, 3), right + rng.normal(0, 0.05, 3)
    sway(p, rng, rng.uniform(0.2, 1.4) if unrest is None else unrest)
    return p


def sit_down(rng, before, duration, after, height=0.45):
    """Stand, sit down backwards in `duration` s, stay. Ends with the pelvis `back` m behind the feet."""
    p = stand(rng, before + duration + after)
    t, a, b = p.t, before, before + duration
    back = rng.uniform(0.34, 0.5) if height > 0.25 else rng.uniform(0.35, 0.6)
    mid = a + duration * rng.uniform(0.4, 0.55)
    p.pelvis[:, 1] += keys(t, [(a, 0), (b, height + 0.11 - 0.925)])
    p.pelvis[:, 2] += keys(t, [(a, 0), (b, -back)])
    lean = rng.uniform(0.3, 0.85)
    p.pitch += keys(t, [(a, 0), (mid, lean * 0.6), (b, rng.uniform(-0.2, 0.1))])
    p.bend += keys(t, [(a, 0), (mid, lean * 0.5), (b, rng.uniform(0, 0.2))])
    rest = rng.choice(["lap", "lap", "crossed", "hang"])
    for k, goal in enumerate(both(RESTS[rest])):
        via = np.array([0.2, -0.8, rng.choice([-0.3, 0.4])]) * [1 if k == 0 else -1, 1, 1]
        w = keys(t, [(a, 0), (mid, 1), (b, 2)])[:, None]
        p.hand[k] = np.where(w < 1, p.hand[k] * (1 - w) + via * w, via * (2 - w) + goal * (w - 1))
    return p.solve(), dict(height=height, z=-back)


def pick_up(rng, before, duration, after, height=0.05, sink=None):
    """Bend (or squat) to something at `height` m before the feet, take it, rise. Returns track, hand, time taken."""
    p = stand(rng, before + duration + after, rest=rng.choice(["hang", "hang", "hang", "front"]))
    t, a, b = p.t, before, before + duration
    low = a + duration * rng.uniform(0.4, 0.5)
    stay = low + duration * rng.uniform(0.03, 0.15)
    squat = rng.uniform(0.05, 0.5) if sink is None else sink
    squat *= 1.0 - min(height, 0.6)
    need = 0.97 - height - squat  # how far the trunk must come down
    fold = float(np.clip(1.0 + 0.9 * need - 0.45, 0.4, 1.75))
    shape = keys(t, [(a, 0), (low, 1), (stay, 1), (b, 0)])
    p.pelvis[:, 1] -= squat * shape
    p.pelvis[:, 2] -= 0.16 * fold * shape * (1 - squat)
    p.pitch += 0.5 * fold * shape
    p.bend += 0.6 * fold * shape
    point = np.array([rng.normal(0, 0.15), height + 0.05, rng.uniform(0.3, 0.5)])
    hands = [(0,), (1,), (0, 1)][rng.integers(3)]
    weight = keys(t, [(a + 0.1 * duration, 0), (low, 1), (stay, 1), (b - 0.25 * duration, 0)])
    hold = rng.choice([0, 1])
    for k in hands:
        side = 0.08 * (1 if k == 0 else -1) * (len(hands) > 1)
        p.reach[k] = (weight, np.tile(point + [side, 0, 0], (len(t), 1)))
        if hold:
            goal = both((-0.1, rng.uniform(-0.6, -0.2), 0.55))[k]
            w = keys(t, [(stay, 0), (b, 1)])[:, None]
            p.hand[k] = p.hand[k] * (1 - w) + goal * w
    return p.solve(), hands[0], 0.5 * (low + stay), point


def gait(rng, seconds, speed=1.3, run=False, arms=None):
    """Walking or running straight ahead at `speed` m/s: feet planted in stance, lifted in swing, arms opposite."""
    p = Pose(clock(seconds))
    t = p.t
    stride = (
        (0.62 + 0.34 * speed) * rng.uniform(0.92, 1.1) * 1.4
        if not run
        else (1.15 + 0.36 * speed) * rng.uniform(0.9, 1.1)
    )
    freq = speed / stride
    phase = t * freq + rng.random()
    duty = 0.62 if not run else rng.uniform(0.3, 0.4)
    z = speed * t
    bob = (0.022 if not run else rng.uniform(0.04, 0.08)) * np.cos(4 * np.pi * phase + (0.6 if not run else 3.6))
    p.pelvis[:, 1] = 0.905 - (0.02 if run else 0.0) - 0.012 * speed * (not run) + bob
    p.pelvis[:, 2] = z
    p.pelvis[:, 0] = 0.02 * np.sin(2 * np.pi * phase)
    lift = rng.uniform(0.10, 0.16) if not run else rng.uniform(0.25, 0.5)
    for k in (0, 1):
        f = np.mod(phase + 0.5 * k, 1.0)
        reach = duty * stride / 2
        swing = np.clip((f - duty) / (1 - duty), 0, 1)
        x = np.where(f < duty, reach - f * stride, -reach + 2 * reach * ease(swing))
        y = np.where(f < duty, 0, lift * np.sin(np.pi * swing) * (1 - 0.5 * swing))
        heel = np.where(f < duty, 0.09 * np.clip((f / duty - 0.65) / 0.35, 0, 1) ** 2, 0.09 * (1 - swing) ** 2)
        p.foot[k][:, 2] = z + x
        p.foot[k][:, 1] = ANKLE + y + heel
        p.foot[k][:, 0] = (0.07 if not run else 0.05) * (1 if k == 0 else -1)
        s = 1 if k == 0 else -1
        amp = rng.uniform(0.15, 0.45) * min(1.4, speed) if not run else rng.uniform(0.35, 0.55)
        a = amp * np.sin(2 * np.pi * (phase + 0.5 * k) - 0.3)
        if run:
            p.hand[k] = np.stack(
                [s * (0.05 - 0.15 * np.maximum(a, 0)), -0.5 + 0.35 * np.maximum(a, 0), 0.35 + 0.75 * a], -1
            )
        else:
            p.hand[k] = np.stack([s * 0.12 + 0 * a, -0.95 + 0.12 * np.abs(a), 0.1 + a], -1)
    p.pitch += (0.03 if not run else rng.uniform(0.05, 0.2)) + wander(rng, t, 0.01)
    p.bend += rng.uniform(0, 0.1)
    p.twist += rng.uniform(0.05, 0.15) * np.sin(2 * np.pi * phase + 1.3)
    p.look += wander(rng, t, 0.15, 3)
    if arms == "carry":
        for k, v in enumerate(both((-0.1, -0.5, 0.5))):
            p.hand[k][:] = v
    return p


def hop(rng, seconds, onset, flight=0.35, forward=0.0, repeat=1, arms=None):
    """Crouch, leap, land, `repeat` times from `onset` s. Height follows from the time of flight. Track and end."""
    p = stand(rng, seconds, rest="hang")
    t = p.t
    g = 9.81
    crouch = rng.uniform(0.15, 0.4) if repeat == 1 else rng.uniform(0.08, 0.2)
    crouch = max(crouch, 0.07)
    depth = rng.uniform(0.10, 0.3) if repeat == 1 else rng.uniform(0.05, 0.14)
    land = rng.uniform(0.1, 0.2)
    rise = rng.uniform(0.08, 0.14)
    y, z, air = np.zeros_like(t), np.zeros_like(t), np.zeros_like(t)
    swing = np.zeros_like(t)
    now = onset
    for k in range(repeat):
        down = keys(t, [(now, 0), (now + crouch, -depth), (now + crouch + rise, 0.06)])
        take = now + crouch + rise
        fly = np.clip(t - take, 0, flight)
        jump = fly * g * flight / 2 - g * fly * fly / 2
        touch = take + flight
        depth2 = depth * rng.uniform(0.5, 1.0)
        after = keys(t, [(touch, 0.06), (touch + land, -depth2), (touch + land + crouch + 0.05, 0.0)])
        y += np.where(t < take, np.where(t >= now, down, 0), np.where(t < touch, 0.06 + jump, 0))
        nxt = touch + (0.02 if k + 1 < repeat else 99)
        y += np.where((t >= touch) & (t < nxt), after, 0)
        air = np.maximum(air, np.where((t > take) & (t < touch), jump, 0))
        z += forward * np.clip(fly / flight, 0, 1)
        swing += (
            keys(t, [(now, 0), (now + crouch, -0.6), (take + 0.1, 1.0), (touch + 0.15, 0)])
            * (t >= now)
            * (t < touch + 0.15)
        )
        now = touch + rng.uniform(0.0, 0.06)
    p.pelvis[:, 1] += y
    p.pelvis[:, 2] += z
    tuck = rng.uniform(0, 0.25)
    spread = rng.uniform(0, 0.25) if arms == "jack" else 0.0
    for k, s in ((0, 1), (1, -1)):
        p.foot[k][:, 1] += air * (1 + tuck) + np.where(air > 0, 0.03, 0)
        p.foot[k][:, 2] += z
        p.foot[k][:, 0] += s * spread * np.sin(np.pi * np.clip(air / max(air.max(), 1e-3), 0, 1))
        up = rng.uniform(0.3, 1.0)
        p.hand[k][:, 2] += 0.6 * swing * up
        p.hand[k][:, 1] += np.maximum(swing, 0) * up * rng.uniform(0.4, 1.4)
        if arms == "jack":
            p.hand[k][:, 0] += s * 0.7 * np.sin(np.pi * np.clip(swing, 0, 1))
    bent = np.clip(-y / 0.3, 0, 1)
    p.pitch += 0.7 * bent
    p.bend += 0.25 * bent
    return p.solve(), min(now + 0.15, float(t[-1]))


FALLS = ("forward", "backward", "left", "right", "collapse", "seated", "missed", "knees")


def fall(rng, before, duration, after, mode=None, speed=0.0, height=0.45):
    """Lose balance at `before` s, hit the floor `duration` s later, lie. `speed`: m/s of walking into it.

    An inverted pendulum (slow start, then nearly free fall) whose knees give way by a random share (crumple).
    """
    mode = mode or rng.choice(FALLS)
    if mode == "missed":
        return missed_seat(rng, before, duration, after), mode
    if mode == "knees":
        return knees_give(rng, before, duration, after), mode
    p = (
        seat(rng, before + duration + after, height)
        if mode == "seated"
        else stand(rng, before + duration + after, unrest=0.5)
    )
    t = p.t
    n = len(t)
    u = np.clip((t - before) / duration, 0, 1)
    s = u ** rng.uniform(1.7, 2.6)
    bounce = np.where(
        t > before + duration, np.exp(-(t - before - duration) * 9) * np.sin((t - before - duration) * 22), 0
    )
    direction = {"forward": 0.0, "backward": np.pi, "left": np.pi / 2, "right": -np.pi / 2}.get(mode)
    if direction is None:
        direction = rng.uniform(-np.pi, np.pi)
    direction += rng.normal(0, 0.25)
    crumple = rng.uniform(0.0, 0.55) if mode != "collapse" else rng.uniform(0.75, 1.0)
    start = p.pelvis[:, 1].copy()
    lag = rng.uniform(0.2, 0.5) if crumple > 0.6 else 0.0
    lean = np.clip((s - lag) / (1 - lag), 0, 1) ** (1.0 if lag == 0 else 0.8) * np.radians(rng.uniform(80, 92))
    rest_y = rng.uniform(0.11, 0.16)
    p.pelvis[:, 1] = np.maximum(start * np.cos(np.minimum(lean, 1.5)) * (1 - 0.0 * s), 0)
    drop = start * (1 - s) + rest_y * s
    p.pelvis[:, 1] = np.maximum((1 - crumple) * (start * np.cos(lean) + rest_y * np.sin(lean)) + crumple * drop, rest_y)
    p.pelvis[:, 1] += 0.03 * bounce * (mode != "seated")
    out = start.mean() * (1 - 0.85 * crumple) * np.sin(lean) + (0.25 * s if mode == "seated" else 0)
    fx, fz = np.sin(direction), np.cos(direction)
    carry = speed * np.where(t < before, t, before + duration * 0.5 * (1 - (1 - u) ** 2))
    p.pelvis[:, 0] += fx * out
    p.pelvis[:, 2] += fz * out + carry
    p.pitch += lean * np.cos(direction)
    p.roll += -lean * np.sin(direction)
    p.yaw += rng.normal(0, 0.5) * s
    p.bend += keys(
        t,
        [(before, 0), (before + 0.5 * duration, rng.uniform(-0.2, 0.5)), (before + duration, rng.uniform(-0.05, 0.25))],
    )
    p.nod += keys(
        t, [(before, 0), (before + 0.4 * duration, rng.uniform(-0.3, 0.4)), (before + duration, rng.uniform(-0.2, 0.1))]
    )
    slip = rng.uniform(0.0, 0.55) * (-1 if rng.random() < 0.7 else 1) * (1 - crumple)
    legs = rng.uniform(0.6, 0.84, 2)
    sideways = rng.normal(0, 0.15, 2)
    for k, sgn in ((0, 1), (1, -1)):
        end = np.stack(
            [
                p.pelvis[:, 0] - fx * legs[k] + sgn * 0.12 * fz + sideways[k] * fz,
                np.full(n, ANKLE),
                p.pelvis[:, 2] - fz * legs[k] - sgn * 0.12 * fx,
            ],
            -1,
        )
        begin = p.foot[k] + np.stack([fx * slip * s, 0.25 * abs(slip) * np.sin(np.pi * s), fz * slip * s + carry], -1)
        w = np.clip((s - 0.35) / 0.65, 0, 1)[:, None]
        p.foot[k] = begin * (1 - w) + end * w
        flail = np.array([sgn * rng.uniform(0.3, 0.9), rng.uniform(-0.3, 0.9), rng.uniform(-0.3, 0.8)])
        goal = np.array([sgn * rng.uniform(0.1, 0.8), rng.uniform(-0.8, 0.8), rng.uniform(-0.05, 0.3)])
        a = before + duration * rng.uniform(0.3, 0.6)
        hand = [(before, p.hand[k][0]), (a, flail), (before + duration + rng.uniform(0.05, 0.3), goal)]
        p.hand[k] = keys(t, hand)
    still = (t > before + duration + 0.4)[:, None]
    for h in p.hand:
        h += still * rng.normal(0, 0.004, 3)
    return p.solve(), mode


def knees_give(rng, before, duration, after):
    """Legs give way at `before` s: down on the knees or the heels, then over, onto the hands, a side or the face."""
    p = stand(rng, before + duration + after, unrest=0.5)
    t, a, b = p.t, before, before + duration
    kneels = a + duration * rng.uniform(0.35, 0.65)
    over = kneels + rng.uniform(0.0, 0.2) * duration
    start, low, rest = p.pelvis[:, 1], rng.uniform(0.28, 0.5), rng.uniform(0.12, 0.2)
    drop = np.clip((t - a) / (kneels - a), 0, 1) ** rng.uniform(1.5, 2.3)
    fall = np.clip((t - over) / (b - over), 0, 1) ** rng.uniform(1.3, 2.2)
    p.pelvis[:, 1] = (start * (1 - drop) + low * drop) * (1 - fall) + rest * fall
    ahead = rng.uniform(0.1, 0.35)
    p.pelvis[:, 2] += 0.6 * ahead * drop + ahead * fall
    aside = rng.choice([-1, 0, 0, 1]) * rng.uniform(0.3, 1.0)
    pitch = rng.uniform(1.0, 1.55) * (1 - 0.6 * abs(aside))
    p.pitch += rng.uniform(0.0, 0.35) * drop * (1 - fall) + pitch * fall
    p.roll += 1.4 * aside * fall
    p.yaw += rng.normal(0, 0.3) * fall
    p.bend += keys(t, [(a, 0), (kneels, rng.uniform(0, 0.5)), (b, rng.uniform(-0.2, 0.5))])
    p.nod += keys(t, [(a, 0), (kneels, rng.uniform(-0.2, 0.5)), (b, rng.uniform(-0.3, 0.2))])
    back = rng.uniform(0.3, 0.5)
    for k, s in ((0, 1), (1, -1)):
        p.foot[k][:, 2] -= back * drop
        p.foot[k][:, 0] += s * rng.uniform(0.0, 0.15) * drop
        flail = np.array([s * rng.uniform(0.1, 0.7), rng.uniform(-0.7, 0.3), rng.uniform(0.0, 0.7)])
        goal = np.array([s * rng.uniform(0.1, 0.6), rng.uniform(-0.3, 0.7), rng.uniform(0.1, 0.7)])
        p.hand[k] = keys(t, [(a, p.hand[k][0]), (kneels, flail), (b + rng.uniform(-0.1, 0.2), goal)])
    return p.solve()


def missed_seat(rng, before, duration, after):
    """Sit down at `before` s where there is no seat: lowered to a seat's height, dropped from there, thrown back."""
    p = stand(rng, before + duration + after, unrest=0.5)
    t, a, b = p.t, before, before + duration
    loose = a + duration * rng.uniform(0.45, 0.7)  # where the seat should be
    down = b - 0.15 * duration
    height, rest = rng.uniform(0.4, 0.62), rng.uniform(0.11, 0.16)
    start = p.pelvis[:, 1]
    lowered = start + keys(t, [(a, 0), (loose, height - 0.925)])
    drop = np.clip((t - loose) / (down - loose), 0, 1) ** rng.uniform(1.5, 2.2)
    p.pelvis[:, 1] = lowered * (1 - drop) + rest * drop
    back = rng.uniform(0.4, 0.75)
    p.pelvis[:, 2] += keys(t, [(a, 0), (loose, -0.7 * back), (b, -back)])
    lean = rng.uniform(0.2, 0.6)
    # Most roll onto their back, some stay seated, propped on their hands.
    lies = rng.random() < 0.7
    thrown = -rng.uniform(1.2, 1.55) if lies else -rng.uniform(0.15, 0.6)
    settled = b + rng.uniform(0.0, 0.35)
    p.pitch += keys(t, [(a, 0), (a + 0.6 * (loose - a), lean), (down, -0.25), (settled, thrown)])
    p.bend += keys(t, [(a, 0), (loose, 0.4 * lean), (settled, rng.uniform(-0.1, 0.2))])
    p.nod += keys(t, [(loose, 0), (down, rng.uniform(0, 0.5)), (settled + 0.2, 0)])
    fling, spread = rng.uniform(0.0, 0.4), rng.uniform(0.0, 0.25)
    for k, s in ((0, 1), (1, -1)):
        at = down + rng.normal(0, 0.05)
        p.foot[k][:, 1] += keys(t, [(loose, 0), (at, fling), (settled + 0.3, 0)])
        p.foot[k][:, 2] += keys(t, [(loose, 0), (at, spread), (settled + 0.3, spread)])
        flail = np.array([s * rng.uniform(0.2, 0.8), rng.uniform(-0.3, 0.6), rng.uniform(-0.3, 0.7)])
        goal = np.array([s * rng.uniform(0.2, 0.7), rng.uniform(-0.9, -0.3), rng.uniform(-0.5, 0.1)])
        p.hand[k] = keys(t, [(loose - 0.1, p.hand[k][0]), (at, flail), (settled + rng.uniform(0, 0.3), goal)])
    return p.solve()


def wave(rng, p, start, stop, hands=(1,)):
    """Wave on top of a pose `p` from `start` to `stop` s: the forearm swings to and fro, the whole arm beckons, or
    straight arms go from the sides to over the head and back, as one signals over a distance."""
    t = p.t
    freq = rng.uniform(0.8, 3.2)
    amp = rng.uniform(0.12, 0.4)
    up = rng.uniform(-0.1, 0.75)
    out = rng.uniform(0.15, 0.6)
    on = keys(t, [(start, 0), (start + 0.3, 1), (max(stop - 0.35, start + 0.31), 1), (max(stop, start + 0.6), 0)])[
        :, None
    ]
    style = rng.random()
    wide, folded = rng.uniform([0.1, -0.6, 0.1], [0.95, 0.4, 0.9]), rng.uniform([-0.1, 0.15, 0.0], [0.4, 0.8, 0.4])
    slow, alternate = rng.uniform(0.4, 1.5), rng.choice([0.0, 0.5])
    lowest, highest = rng.uniform(-1.4, 0.6), rng.uniform(1.2, 1.75)
    if style < 0.25 and rng.random() < 0.6:
        hands = (0, 1)
    for k in hands:
        s = 1 if k == 0 else -1
        swing = amp * np.sin(2 * np.pi * freq * (t - start) + (0 if rng.random() < 0.6 else np.pi * k))
        if style < 0.25:
            height = 0.5 - 0.5 * np.cos(2 * np.pi * (0.8 * slow * (t - start) + 0.3 * alternate * k))
            angle = lowest + (highest - lowest) * height
            point = np.stack([s * np.cos(angle), np.sin(angle), np.full_like(t, 0.1)], -1) * 0.97
        elif style < 0.5:  # waving somebody through, as who directs the traffic: from outstretched to the head and back
            fold = ease(0.5 - 0.5 * np.cos(2 * np.pi * (slow * (t - start) + alternate * k)))[:, None]
            point = (wide * (1 - fold) + folded * fold) * [s, 1, 1]
        elif style < 0.85:
            point = np.stack(
                [s * out + swing, up + 0.15 * np.cos(swing / amp * 1.3), np.full_like(t, rng.uniform(0.25, 0.6))], -1
            )
        else:  # overhead, wide
            point = np.stack([s * 0.35 + 1.3 * swing, np.full_like(t, 0.85), np.full_like(t, 0.15)], -1)
        p.hand[k] = p.hand[k] * (1 - on) + point * on
    return p


def dance(rng, seconds):
    """Rhythmic made-up dancing: bounce, side steps, twisting trunk, arms on their own figures at the beat."""
    p = Pose(clock(seconds))
    t = p.t
    beat = rng.uniform(1.4, 2.6)
    w = 2 * np.pi * beat * (t + rng.random())
    half = w / 2
    p.pelvis[:, 1] -= rng.uniform(0.03, 0.1) * (0.5 + 0.5 * np.cos(w)) + 0.03
    shift = rng.uniform(0.05, 0.22)
    p.pelvis[:, 0] = shift * np.sin(half)
    p.pelvis[:, 2] = wander(rng, t, rng.uniform(0.02, 0.3), 4)
    p.twist += rng.uniform(0.1, 0.7) * np.sin(half + rng.uniform(0, 6))
    p.side += rng.uniform(0, 0.3) * np.sin(half + rng.uniform(0, 6))
    p.roll += rng.uniform(0, 0.18) * np.sin(half + rng.uniform(0, 6))
    p.yaw += wander(rng, t, rng.uniform(0, 1.2), 4) + (rng.random() < 0.25) * rng.choice([-1, 1]) * 2.2 * t
    p.nod += 0.12 * np.sin(w)
    kick = rng.uniform(0.0, 0.35)
    for k, s in ((0, 1), (1, -1)):
        lift = np.maximum(0, np.sin(half + (0 if k else np.pi)))
        p.foot[k][:, 0] = s * rng.uniform(0.1, 0.2) + shift * 1.2 * np.sin(half) * (lift > 0)
        p.foot[k][:, 1] += lift * rng.uniform(0.05, 0.3)
        p.foot[k][:, 2] += kick * lift + p.pelvis[:, 2]
        centre = np.array([s * rng.uniform(0.1, 0.6), rng.uniform(-0.4, 0.6), rng.uniform(0.2, 0.5)])
        m = rng.choice([0.5, 1.0, 1.0, 2.0], 3)
        a = rng.uniform(0.1, 0.55, 3)
        q = rng.uniform(0, 6.3, 3)
        p.hand[k] = centre + np.stack([a[i] * np.sin(m[i] * half + q[i]) for i in range(3)], -1)
    if abs(p.yaw).max() > 1.5:  # spinning: feet turn with the body
        c, s = np.cos(p.yaw), np.sin(p.yaw)
        for f in p.foot:
            x, z = f[:, 0].copy(), f[:, 2].copy()
            f[:, 0], f[:, 2] = c * x + s * z, -s * x + c * z
    return p.solve()


def follow(p, total, length):
    """Moves the body by `total` [F] metres along z; the feet catch up in steps of about `length` m."""
    p.pelvis[:, 2] += total
    p.pelvis[:, 1] -= 0.02 * (np.abs(total) > 0.02)
    moving = np.abs(np.gradient(total)) > 1e-4
    for k in (0, 1):
        s = np.abs(total) / length + 0.5 * k
        swing = np.clip((np.mod(s, 1.0) - 0.35) / 0.65, 0, 1)
        stepped = np.maximum((np.floor(s) + ease(swing) - 0.5 * k) * length, 0)
        p.foot[k][:, 2] += np.sign(total) * stepped * (np.abs(total).max() > 0.05)
        p.foot[k][:, 1] += 0.22 * min(length, 0.6) * moving * np.sin(np.pi * swing)


def strike(rng, kind, seconds, onset, goal, count=1, guard=None, step=0.0, lunge=0.0):
    """Attacker at the origin facing +z. `goal` (x, y, z): where the blow lands. Returns track, contact times, end.

    A punch takes 0.15 to 0.6 s to land from the first movement, a kick 0.25 to 0.8, a push 0.2 to 0.8: most who strike
    before a camera do it for show, slower than a fighter.
    `lunge`: metres behind the origin at which the attacker stands until `onset`, to spring forward with the blow.
    """
    guard = rng.random() < 0.5 if guard is None else guard
    p = stand(rng, seconds, rest="guard" if guard and kind != "pushing" else "hang", unrest=rng.uniform(0.5, 2.0))
    t = p.t
    stagger = rng.uniform(0.1, 0.25)
    p.foot[0][:, 2] += stagger
    p.foot[1][:, 2] -= stagger
    now, contacts = onset, []
    goal = np.asarray(goal, float)
    side = int(rng.integers(2))
    if step:
        walk = keys(t, [(max(0, onset - 0.25), 0), (onset + 0.3, step)])
        p.pelvis[:, 2] += walk
        for k in (0, 1):
            a = onset - 0.25 + 0.12 * k
            p.foot[k][:, 2] += keys(t, [(max(0, a), 0), (a + 0.3, step)])
            p.foot[k][:, 1] += 0.08 * np.sin(np.pi * np.clip((t - a) / 0.3, 0, 1))
        goal = goal + 0.0
    weights = [np.zeros_like(t), np.zeros_like(t)]
    points = [np.tile(goal, (len(t), 1)), np.tile(goal, (len(t), 1))]
    # Somebody who springs forward puts the whole body into it, and is slower to take the arm or leg back.
    vigour, linger = (rng.uniform(1.0, 2.2), rng.uniform(0.0, 0.3)) if lunge else (1.0, 0.0)
    arrive = min(lunge / rng.uniform(1.0, 3.6), 1.1)
    pace = float(np.exp(rng.uniform(np.log(0.8), np.log(1.8))))  # of all the blows: how long they take
    now += arrive * rng.uniform(0.6, 1.0) if lunge else 0.0
    for _ in range(count):
        target = goal + rng.normal(0, 0.04, 3)
        if kind == "punching":
            wind, go, hold, back = (
                rng.uniform(0.06, 0.2) * vigour * pace,
                rng.uniform(0.10, 0.17) * pace,
                rng.uniform(0.0, 0.05) + linger,
                rng.uniform(0.14, 0.32) * vigour * pace,
            )
            hit = now + wind + go
            pull = np.array(
                [0.25 * (1 if side == 0 else -1), -0.25 + rng.uniform(-0.2, 0.2), -0.15 + rng.uniform(-0.2, 0.3)]
            )
            w = keys(t, [(now, 0), (now + wind, 1), (hit, 0)])[:, None]
            p.hand[side] = p.hand[side] * (1 - w) + pull * w
            w = keys(t, [(now + wind * 0.7, 0), (hit, 1), (hit + hold, 1), (hit + hold + back, 0)])
            weights[side] = np.maximum(weights[side], w)
            sgn = 1 if side == 0 else -1
            # Straight, or swung from the side (a hook) or from below (an uppercut).
            swung = rng.uniform([0.0, -0.4, 0.0], [0.4, 0.1, 0.0]) * [sgn, 1, 1] * (rng.random() < 0.5)
            points[side] = np.where((t > now)[:, None], target + (1 - w)[:, None] * swung, points[side])
            p.twist += sgn * keys(t, [(now, 0), (now + wind, 0.45 * vigour), (hit, -0.6), (hit + hold + back, 0)])
            p.pitch += vigour * keys(t, [(now, 0), (hit, rng.uniform(0.05, 0.3)), (hit + hold + back, 0)])
            p.pelvis[:, 2] += keys(t, [(now, 0), (hit, 0.12), (hit + back + 0.1, 0)])
            now, side = hit + hold + back * rng.uniform(0.4, 1.0), 1 - side if rng.random() < 0.75 else side
        elif kind == "kicking":
            up, go, hold, back = (
                rng.uniform(0.16, 0.3) * pace,
                rng.uniform(0.1, 0.2) * pace,
                rng.uniform(0, 0.06) + linger,
                rng.uniform(0.25, 0.45) * pace,
            )
            hit = now + up + go
            f = p.foot[side]
            rest = f[min(len(t) - 1, int(now * RATE))].copy()
            knee = np.array([rest[0], max(0.3, target[1] * 0.65), rng.uniform(-0.25, 0.2) if target[1] < 0.6 else 0.15])
            if target[1] < 0.5 and rng.random() < 0.6:  # a swing from behind, like at a ball
                knee = np.array([rest[0], 0.35, -0.45])
            path = keys(
                t,
                [
                    (now, rest),
                    (now + up, knee),
                    (hit, target),
                    (hit + hold, target),
                    (hit + hold + back * 0.5, knee * [1, 0.8, 1]),
                    (hit + hold + back, rest),
                ],
            )
            active = ((t >= now) & (t < hit + hold + back))[:, None]
            p.foot[side] = np.where(active, path, f)
            shape = keys(t, [(now, 0), (hit, 1), (hit + hold + back, 0)])
            p.pitch -= shape * np.clip(target[1] * 0.5, 0.05, 0.65)
            p.bend += shape * 0.2
            p.roll += shape * rng.uniform(-0.2, 0.2)
            p.pelvis[:, 2] += 0.15 * shape
            for k in (0, 1):
                s = 1 if k == 0 else -1
                p.hand[k][:, 0] += s * shape * rng.uniform(0, 0.5)
                p.hand[k][:, 1] += shape * rng.uniform(0, 0.5)
            now = hit + hold + back
            side = 1 - side if rng.random() < 0.5 else side
        else:
            raise_, go, hold, back = (
                rng.uniform(0.12, 0.3) * pace,
                rng.uniform(0.12, 0.25) * pace,
                rng.uniform(0.03, 0.15) + linger,
                rng.uniform(0.25, 0.5) * pace,
            )
            hit = now + raise_ + go
            hands = (0, 1) if rng.random() < 0.85 else (side,)
            for k in hands:
                s = 1 if k == 0 else -1
                ready = np.array([-0.05 * s, -0.3, 0.3])
                w = keys(t, [(now, 0), (now + raise_, 1), (hit + hold, 1), (hit + hold + back, 0)])[:, None]
                p.hand[k] = p.hand[k] * (1 - w) + ready * w
                weights[k] = keys(t, [(now + raise_, 0), (hit, 1), (hit + hold, 1), (hit + hold + back, 0)])
                points[k] = np.tile(target + [0.1 * s, 0, 0.12], (len(t), 1))
            p.pitch += keys(t, [(now, 0), (now + raise_, -0.05), (hit, rng.uniform(0.15, 0.4)), (hit + hold + back, 0)])
            p.pelvis[:, 1] -= 0.06 * (vigour - 1) * keys(t, [(now, 0), (hit, 1), (hit + hold + back, 0)])
            p.pelvis[:, 2] += keys(t, [(now, 0), (hit, rng.uniform(0.1, 0.25)), (hit + hold + back, 0.05)])
            now = hit + hold + back
        contacts.append(hit)
    for k in (0, 1):
        p.reach[k] = (weights[k], points[k])
    if lunge:
        retreat = rng.choice([0.0, rng.uniform(0.3, 1.0), rng.uniform(0.3, 1.0)]) * lunge
        there = [(onset, -lunge), (onset + arrive, 0.0), (max(now, onset + arrive), 0.0)]
        way = keys(t, [*there, (max(now, onset + arrive) + rng.uniform(0.5, 1.2), -retreat)])
        follow(p, way, rng.uniform(0.4, 0.8))
    return p.solve(), contacts, min(float(t[-1]), now + 0.1)


def box(rng, seconds):
    """Somebody at the origin, facing +z, who boxes: in the guard, on the toes, to and fro, in bursts of one to five
    blows, straight or swung, that go at nothing. Returns track and the times at which the blows are longest."""
    p = stand(rng, seconds, rest="guard", unrest=rng.uniform(0.8, 2.0))
    t = p.t
    lead = int(rng.integers(2))
    stance = rng.uniform(0.1, 0.25)
    nimble = rng.uniform(0.0, 1.0)  # from somebody with both feet planted to a dancer in the ring
    step = [wander(rng, t, size * nimble, 1.8) for size in (0.12, 0.2)]
    beat = np.pi * rng.uniform(1.5, 3.2) * t + np.pi * rng.random()
    for k in (0, 1):
        p.foot[k][:, 2] += stance if k == lead else -stance
        p.foot[k][:, 0] += step[0]
        p.foot[k][:, 2] += step[1]
        p.foot[k][:, 1] += 0.04 * nimble * np.maximum(np.sin(beat + 0.6 * k), 0)
    p.pelvis[:, 0] += step[0]
    p.pelvis[:, 2] += step[1]
    p.pelvis[:, 1] += 0.05 * nimble * np.abs(np.sin(beat)) - rng.uniform(0.03, 0.12)
    p.yaw += (1 if lead else -1) * rng.uniform(0.0, 0.6)  # side on
    p.roll += wander(rng, t, 0.1 * nimble, 0.9)  # the head off the line
    p.bend += rng.uniform(0.0, 0.3) + wander(rng, t, 0.08 * nimble, 0.8)
    pace = float(np.exp(rng.uniform(np.log(0.8), np.log(1.7))))
    now, side, hits = rng.uniform(0.0, 0.5), lead, []
    while now < seconds - 0.2:
        for _ in range(int(rng.integers(1, 6))):
            s = 1 if side == 0 else -1
            wind, go, back = (pace * rng.uniform(*span) for span in ((0.03, 0.08), (0.09, 0.15), (0.12, 0.25)))
            hit = now + wind + go
            aim = np.array([-0.15 * s + rng.normal(0, 0.08), rng.uniform(-0.25, 0.2), 0.96])
            w = keys(t, [(now + wind, 0), (hit, 1), (hit + 0.03, 1), (hit + 0.03 + back, 0)])
            swung = np.zeros(3)
            if rng.random() < 0.35:  # a hook, or an uppercut
                aim[2] = 0.7
                swung = np.array([[0.7 * s, 0.0, 0.0], [0.1 * s, -0.6, 0.0]][rng.integers(2)])
            point = aim + np.sin(np.pi * w)[:, None] * swung
            p.hand[side] = p.hand[side] * (1 - w[:, None]) + point * w[:, None]
            p.twist += s * keys(t, [(now, 0), (now + wind, 0.15), (hit, -rng.uniform(0.3, 0.7)), (hit + back, 0)])
            p.pitch += keys(t, [(now, 0), (hit, rng.uniform(0.0, 0.15)), (hit + back, 0)])
            hits.append(hit)
            now = hit + back * rng.uniform(0.3, 0.9)
            side = 1 - side if rng.random() < 0.75 else side
        now += rng.uniform(0.1, 0.9)
    return p.solve(), [h for h in hits if h < t[-1]]


def recoil(rng, seconds, contacts, kind, force=1.0):
    """The struck person at the origin facing +z (towards the attacker): thrown back, steps, settles."""
    p = stand(rng, seconds, unrest=rng.uniform(0.5, 1.6))
    t = p.t
    guard = rng.random() < 0.35
    if guard:
        for k, v in enumerate(both(RESTS["guard"])):
            p.hand[k][:] = v
    total = np.zeros_like(t)
    for hit in contacts:
        hit = hit - 0.02
        # How far back hardly tells the blow: on video made for show a punch may throw as far as a push.
        back = force * (rng.uniform(0.1, 0.9) if kind != "pushing" else rng.uniform(0.2, 1.2))
        settle = rng.uniform(0.35, 0.9)
        u = np.clip((t - hit) / settle, 0, 1)
        total += back * (1 - (1 - u) ** 2.2)
        jerk = rng.uniform(0.15, 0.5) * force
        knock = keys(t, [(hit, 0), (hit + 0.12, 1), (hit + 0.55, 0)])
        if kind == "punching":
            p.nod -= knock * rng.uniform(0.3, 0.8)
            p.look += knock * rng.uniform(-0.9, 0.9)
            p.bend -= 0.7 * jerk * knock
            p.twist += knock * rng.uniform(-0.6, 0.6)
        elif kind == "kicking":
            p.bend += jerk * 1.6 * knock
            p.pelvis[:, 1] -= 0.05 * knock
        else:
            p.pitch -= jerk * knock * 0.8
            p.nod += 0.5 * jerk * knock
        cover = rng.random() < 0.4
        hold = keys(t, [(hit, 0), (hit + 0.15, 1), (hit + 0.5, 1), (hit + 1.2, 0.7 if cover else 0)])[:, None]
        for k, s in ((0, 1), (1, -1)):
            if kind == "punching":
                goal = np.array([-0.25 * s, rng.uniform(0.0, 0.35), 0.4]) if cover else np.array([0.6 * s, -0.3, 0.3])
            elif kind == "kicking":
                goal = np.array([-0.2 * s, -0.6, 0.4])
            else:
                goal = np.array([s * rng.uniform(0.3, 0.8), rng.uniform(-0.4, 0.3), rng.uniform(0.3, 0.8)])
            p.hand[k] = p.hand[k] * (1 - hold) + goal * hold
    follow(p, -total, 0.28)
    return p.solve()


def lying(rng, seconds):
    """Somebody lying (bed, sofa or floor height is the caller's), small movements."""
    p = Pose(clock(seconds))
    p.pelvis[:] = [0, 0.13, 0]
    side = rng.choice(["back", "back", "front", "side"])
    p.pitch += {"back": -1.55, "front": 1.55, "side": 0.0}[side]
    p.roll += 1.5 if side == "side" else 0.0
    axis = {"back": (0, 0, 1), "front": (0, 0, -1), "side": (1, 0, 0)}[side]
    for k, s in ((0, 1), (1, -1)):
        across = (1, 0, 0) if side != "side" else (0, 0, 1)
        p.foot[k][:] = np.array(axis) * rng.uniform(0.55, 0.85) + np.array(across) * 0.12 * s + [0, ANKLE, 0]
        p.hand[k][:] = [s * rng.uniform(0.1, 0.6), rng.uniform(-0.9, 0.7), rng.uniform(0.0, 0.3)]
    sway(p, rng, rng.uniform(0.05, 0.6))
    p.pelvis[:, 0] *= 0.2
    return p.solve()
