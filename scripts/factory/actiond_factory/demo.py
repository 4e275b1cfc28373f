"""Render the demo clip, about a minute of one held-out person's day in three scenes, and its true timeline.

Writes DIR/demo.mp4 (640x360, 30 fps, H.264) and DIR/demo.tsv (label, start_s, end_s: the actions; the rest is
`nothing`). Captures are of test subjects only, procedural motion of seeds that no shard uses.

Example:
  scripts/factory/factory demo --out demo --mocap DIR --animations DIR
"""

from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from . import motion as m
from . import scripts
from .render import Shot, encoder
from .scene import Camera, Look

SIZE = (640, 360)
OVER = 2  # drawn at twice the size and averaged down
RATE = 30.0
SEED = 4242
ROOMS = (1, 5, 13)  # seeds of the three backdrops, chosen by eye


def turn(rng, seconds, angle):
    """Turn on the spot by `angle` (rad) with small steps, in the middle of `seconds`."""
    p = m.stand(rng, seconds, rest="hang", unrest=0.7)
    yaw = m.keys(p.t, [(0.1, 0.0), (min(0.95, seconds - 0.1), angle)])
    c, s = np.cos(yaw), np.sin(yaw)
    for k, foot in enumerate(p.foot):
        x, z = foot[:, 0].copy(), foot[:, 2].copy()
        foot[:, 0], foot[:, 2] = c * x + s * z, -s * x + c * z
        foot[:, 1] += (
            0.05 * np.maximum(0, np.sin(2 * np.pi * (p.t * 2.2 + 0.5 * k))) * (np.abs(np.gradient(yaw)) > 1e-3)
        )
    p.yaw += yaw
    return p.solve()


def idle(rng, seconds):
    """Standing about."""
    return m.stand(rng, seconds, rest="hang", unrest=0.8).solve()


class Story:
    """Segments of one actor joined into a track, with the times of the labelled ones."""

    def __init__(self, first):
        self.track, self.times = first, []

    def add(self, track, label=None, inner=None, blend=0.3):
        """Append; `inner` = (start, end) s of the action inside the segment (default: all of it)."""
        n = min(int(blend * m.RATE), len(self.track) - 1, len(track) - 1)
        start = (len(self.track) - n) / m.RATE
        self.track = m.chain([self.track, track], blend=blend)
        if label:
            a, b = inner or (0.0, len(track) / m.RATE)
            self.times.append((label, start + a, start + b))
        return start

    @property
    def seconds(self):
        """Length so far."""
        return len(self.track) / m.RATE


def at_home(rng, lib):
    """Scene 1: an empty room; walks in, waves, sits down, stands up, picks something up."""
    take = next(t for t in lib.by["walking", "held"] if t.name == "12_01")
    walk = m.home(m.resample(take.track, take.rate, 1.12))
    walk = walk[: int(3.5 * m.RATE)]
    story = Story(walk)
    story.times.append(("walking", 0.0, story.seconds))
    story.add(turn(rng, 1.3, -np.pi / 2), blend=0.35)
    story.add(idle(rng, 1.3))
    p = m.stand(rng, 4.0, rest="hang", unrest=0.6)
    story.add(m.wave(rng, p, 0.2, 3.8, (1,)).solve(), "waving", (0.2, 3.8))
    story.add(idle(rng, 1.6))
    sit, info = m.sit_down(rng, 0.5, 1.25, 3.0, 0.45)
    at = story.add(sit, "sitting down", (0.5, 1.75))
    rise = m.sit_down(rng, 0.8, 1.2, 0.6, 0.45)[0][::-1].copy()
    seated = story.track[-1, m.PELVIS].copy()
    story.add(rise, "standing up", (0.6, 1.8))
    story.add(idle(rng, 1.5))
    pick, hand, grab, _ = m.pick_up(rng, 0.5, 1.8, 1.4, 0.03)
    begin = story.add(pick, "picking up", (0.5, 2.3))
    track = m.place(story.track, yaw=np.pi / 2)
    end = story.track[int((at + 0.2) * m.RATE), m.PELVIS]
    moved = m.place(np.stack([end, seated])[:, None].repeat(20, 1), yaw=np.pi / 2)[:, 0]
    shift = np.array([0.1 - moved[0, 0], 0, -moved[0, 2]])
    track = m.place(track, shift[0], shift[2])
    seat = moved[1] + shift
    frame = int((begin + grab) * m.RATE)
    joint = (m.LHA, m.RHA)[hand]
    thing = track[frame, joint].copy()
    boxes = scripts.chair(0.45, float(seat[2]) - 0.05, x=float(seat[0]))
    boxes += [((2.2, 0.4, -1.1), (0.9, 0.8, 0.5), 0.0), ((-2.3, 0.95, -1.5), (0.8, 1.9, 0.4), 0.0)]
    lead = 2.0
    track = np.concatenate([m.place(np.repeat(track[:1], int(lead * m.RATE), axis=0), x=-9.0), track])
    script = scripts.Script("demo", [track], [], boxes=boxes, prop=(0, joint, lead + begin + grab, tuple(thing)))
    times = [(label, a + lead, b + lead) for label, a, b in story.times]
    camera = ((2.3, 1.75, 3.2), (-0.15, 0.9, 0.0), 1.05)
    return script, times, camera


def quarrel(rng, lib):
    """Scene 2: two people; a punch and another, a kick, a push."""
    apart = 0.75
    story = Story(idle(rng, 1.8))
    blows = []
    for kind, length, goal, count in (
        ("punching", 3.4, (0.03, 1.5, 0.62), 3),
        ("kicking", 3.6, (0.05, 0.85, 0.78), 2),
        ("pushing", 3.2, (0.0, 1.28, 0.6), 1),
    ):
        track, contacts, end = m.strike(rng, kind, length, 0.4, goal, count, guard=kind == "punching")
        at = story.add(track, kind, (0.4, end))
        blows.append((kind, at, contacts))
        if kind != "pushing":
            story.add(idle(rng, 2.2))
    story.add(idle(rng, 1.5))
    seconds = story.seconds
    now, target = 0.0, idle(rng, 1.0)
    for k, (kind, at, contacts) in enumerate(blows):
        until = blows[k + 1][1] if k + 1 < len(blows) else seconds
        piece = m.recoil(
            rng, until - now + 0.35, [c + at - now for c in contacts], kind, 0.35 if kind != "pushing" else 0.8
        )
        target = piece if k == 0 else m.chain([target[: int(now * m.RATE) + 30], piece], blend=0.3)
        now = until
    n = min(len(story.track), len(target))
    script = scripts.Script("demo", [story.track[:n], m.place(target[:n], z=apart, yaw=np.pi)], [], main=2)
    script.actors = [m.place(m.place(a, z=-0.5), yaw=np.pi / 2) for a in script.actors]
    script.boxes = [((2.1, 0.37, -1.6), (1.1, 0.74, 0.7), 0.2), ((-1.7, 0.5, -2.0), (0.6, 1.0, 0.5), 0.4)]
    return script, story.times, ((0.3, 1.5, 3.2), (0.15, 0.9, 0.0), 1.02)


def hall(rng, lib):
    """Scene 3: runs past and back, jumps, dances, falls and stays down."""
    speed, side = 2.9, 4.3
    past = m.place(m.gait(rng, 2 * side / speed, speed, run=True).solve(), x=-side, yaw=np.pi / 2)
    past[:, :, 2] -= 0.8
    story = Story(m.gait(rng, (side - 0.2) / speed, speed, run=True).solve())
    back = story.seconds
    story.add(turn(rng, 1.3, np.pi / 2), blend=0.35)
    story.add(idle(rng, 1.4))
    track, end = m.hop(rng, 3.9, 0.4, 0.36, 0.0, 4)
    story.add(track[: int((end + 0.6) * m.RATE)], "jumping", (0.4, end))
    story.add(idle(rng, 1.6))
    dances = lib.by.get(("dancing", "held"), [])
    take = min(dances, key=lambda t: np.ptp(t.track[:, m.PELVIS, 0]) + np.ptp(t.track[:, m.PELVIS, 2]))
    captured = m.home(m.resample(take.track, take.rate, 1.15))[: int(3.2 * m.RATE)]
    start = story.add(captured, blend=0.4)
    story.add(m.dance(rng, 3.6), blend=0.4)
    story.times.append(("dancing", start + 0.2, story.seconds))
    story.add(idle(rng, 1.8), blend=0.4)
    track, _ = m.fall(rng, 0.5, 0.85, 3.2, "left")
    story.add(track, "falling", (0.5, 1.35))
    track = m.place(story.track, x=side, yaw=-np.pi / 2)
    lead = len(past) / m.RATE
    times = [("running", 0.15, lead + back)] + [(label, a + lead, b + lead) for label, a, b in story.times]
    script = scripts.Script("demo", [np.concatenate([past, track])], [])
    script.boxes = [((-2.6, 0.45, -2.2), (1.6, 0.9, 0.6), 0.0), ((2.9, 0.9, -2.3), (0.7, 1.8, 0.5), 0.1)]
    return script, times, ((0.0, 1.6, 3.7), (0.0, 0.85, 0.0), 1.0)


def looks(rng):
    """The clothes of the demo's two people."""
    first, second = Look(rng), Look(rng)
    for look, skin, hair, top, legs, shoe in (
        (first, (224, 172, 140), (60, 40, 25), (196, 62, 58), (46, 62, 98), (235, 235, 230)),
        (second, (150, 100, 70), (25, 22, 22), (235, 196, 84), (72, 76, 80), (40, 34, 30)),
    ):
        look.skin, look.hair, look.top, look.legs, look.shoe = (
            np.array(c, float) for c in (skin, hair, top, legs, shoe)
        )
        look.skirt = look.shorts = look.long_hair = False
        look.bulk = look.limb = 1.0
        look.sleeve, look.stripes, look.stripe = 1, 0, np.array((245.0, 240, 230))
    first.stripes = 4
    return [first, second]


def add_arguments(parser):
    """Command line of `demo`."""
    parser.add_argument("--out", required=True, help="folder for demo.mp4 and demo.tsv")
    parser.add_argument("--mocap", required=True, help="folder with classes.tsv and the bvh archives")
    parser.add_argument("--animations", required=True, help="folder with the animation GLBs")
    parser.add_argument("--cache", help="file of motions that `render` keeps, to save a minute")
    parser.add_argument("--seed", type=int, default=SEED)


def main(args):
    """Render the scenes one after another into one file."""
    cv2.setNumThreads(1)
    if args.cache:
        takes = m.cached_takes(args.cache, args.mocap, args.animations)
    else:
        takes = m.load_takes(args.mocap, args.animations)
    lib = scripts.Library(takes)
    folder = Path(args.out)
    out = encoder(folder / "demo.mp4", *SIZE, RATE, crf=24, extra=("-preset", "slow"))
    width, height = SIZE[0] * OVER, SIZE[1] * OVER
    offset, lines = 0.0, ["label\tstart_s\tend_s"]
    people = looks(np.random.default_rng([args.seed, 0]))
    for k, scene in enumerate((at_home, quarrel, hall)):
        rng = np.random.default_rng([args.seed, k + 1])
        script, times, (place, target, lens) = scene(rng, lib)
        count = int((len(script.actors[0]) - 1) / m.RATE * RATE)
        camera = Camera(place, target, 0.0, height * lens, width, height)
        rng = np.random.default_rng([args.seed, 9, ROOMS[k]])
        shot = Shot(
            rng, script, np.arange(count) / RATE, (width, height), clean=True, detail=True, camera=camera, looks=people
        )
        shot.contrast, shot.grey, shot.shadow = 1.0, False, 0.4
        for i in tqdm(range(count), desc=f"scene {k + 1}", unit="picture", mininterval=5):
            small = cv2.resize(shot.picture(i), SIZE, interpolation=cv2.INTER_AREA)
            out.stdin.write(np.ascontiguousarray(small).tobytes())
        lines += [f"{label}\t{a + offset:.2f}\t{b + offset:.2f}" for label, a, b in times]
        offset += count / RATE
    out.stdin.close()
    if out.wait():
        raise RuntimeError("ffmpeg failed")
    (folder / "demo.tsv").write_text("\n".join(lines) + "\n")
    return 0
