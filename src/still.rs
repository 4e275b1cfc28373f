//! Whether anything moves: a cheap look at pairs of scaled pictures, and what may be left out while nothing does. Pure, and
//! nothing is allocated after the first picture.
//!
//! A picture's luma is looked at in [`CELLS`] cells along each side. A cell has *changed* when its mean absolute
//! difference from the picture before, less what the whole picture's brightness did, is over [`FLOOR`] and twice what it is
//! there as a rule. Something has *moved* when
//!
//! - a cell changed, and one had within the last [`RECENT`] frames (or in the picture before): what moves, moves on. A
//!   keyframe that redraws a compressed picture, or a clock that ticks each second in a corner, is alone and is none; a
//!   clock that shows fractions of a second is movement (a camera's `region` can leave it out);
//! - or many cells ([`MANY`]) changed much ([`MUCH`]), as by a light that is switched on;
//! - or the picture is no longer the one that came to rest: many cells are [`AWAY`] from it, as by something that creeps,
//!   or the light has drifted by [`DRIFT`]. Slow light alone costs a window now and then that way, and what is held of a
//!   still picture never belongs to another light.
//!
//! Wrongly moving costs time, wrongly still costs an event: in doubt it moves. The thresholds were chosen on real clips
//! and on a still scene with sensor noise, encoded at 25 to 100 frames a keyframe; a person who sits quietly mostly moves.

use std::ops::Range;

use crate::{inference::Reach, ring::WINDOW};

/// Cells along each side: at 128 pixels, 8 each.
const CELLS: usize = 16;

/// In grey levels of 255, means over a cell. Compression redraws up to 1, a sitting person's head makes 1 to 5, an arm 10
/// and more.
const FLOOR: f32 = 1.5;
const MUCH: f32 = 10.0;
const AWAY: f32 = 6.0;
const DRIFT: i32 = 12;

/// Fewer cells than these a clock's digits may fill.
const MANY: usize = 6;

/// Frames: 0.4 s. Less than from one second to the next, more than between two pictures of a slow camera.
const RECENT: u64 = 10;

/// A cell's usual difference is followed by this much a picture, up or down, and is never taken for more than that: noise
/// that is heavier than this is movement.
const LEARN: f32 = 0.02;
const LOUDEST: f32 = 2.0;

/// What a picture shows beside the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Frames in a row, up to this picture's last, in which nothing has moved; 0 when it moves.
    pub still: u64,
    /// Something changed, be it that it has not moved yet.
    pub changed: bool,
}

/// Watches one view of one camera.
#[derive(Debug)]
pub struct Stillness {
    /// Samples of a row, and rows.
    size: [usize; 2],
    /// What each cell differs by as a rule: the median over time.
    usual: Vec<f32>,
    /// The picture that came to rest.
    rest: Vec<u8>,
    still: u64,
    /// Frames since a cell changed.
    since: u64,
    /// Frames since the picture was held against the one that came to rest.
    unseen: u64,
    sums: Vec<i32>,
    sorted: Vec<i32>,
    differences: Vec<f32>,
}

impl Stillness {
    /// For pictures of `size`: samples of a row, and rows.
    pub fn new(size: [usize; 2]) -> Self {
        Stillness {
            size,
            usual: vec![0.0; CELLS * CELLS],
            rest: Vec::with_capacity(size[0] * size[1]),
            still: 0,
            since: u64::MAX,
            unseen: 0,
            sums: vec![0; CELLS * CELLS],
            sorted: vec![0; CELLS * CELLS],
            differences: vec![0.0; CELLS * CELLS],
        }
    }

    /// The first picture, or the first behind a cut.
    pub fn begin(&mut self, now: &[u8]) {
        self.rest.clear();
        self.rest.extend_from_slice(now);
        (self.still, self.since, self.unseen) = (0, u64::MAX, 0);
    }

    /// The next picture, `ticks` frames behind the one `before`.
    pub fn look(&mut self, before: &[u8], now: &[u8], ticks: u64) -> Look {
        if self.rest.len() != now.len() || before.len() != now.len() || now.len() != self.size[0] * self.size[1] {
            self.begin(now);
            return Look { still: 0, changed: true };
        }
        self.compare(before, now);
        let (mut changed, mut much) = (false, 0);
        for (difference, usual) in self.differences.iter().zip(&mut self.usual) {
            changed |= *difference > FLOOR.max(2.0 * *usual);
            much += usize::from(*difference > MUCH);
            let step = if difference > usual { LEARN } else { -LEARN };
            *usual = (*usual + step).clamp(0.0, LOUDEST);
        }
        let again = changed && (self.since == 0 || self.since.saturating_add(ticks) <= RECENT);
        self.since = if changed { 0 } else { self.since.saturating_add(ticks) };
        // What creeps or drifts is slow, and needs no look at each picture.
        self.unseen += ticks;
        let away = (changed || self.unseen >= RECENT) && self.is_away(now);
        let moved = again || much >= MANY || away;
        if moved {
            self.rest.copy_from_slice(now);
            self.still = 0;
        } else {
            self.still += ticks;
        }
        Look { still: self.still, changed: changed || moved }
    }

    /// Whether the picture has left the one that came to rest.
    fn is_away(&mut self, now: &[u8]) -> bool {
        self.unseen = 0;
        let rest = std::mem::take(&mut self.rest);
        let drift = self.compare(&rest, now);
        self.rest = rest;
        drift.abs() > DRIFT || self.differences.iter().filter(|d| **d > AWAY).count() >= MANY
    }

    /// Fills `differences` with each cell's mean absolute difference, less the whole picture's; gives the latter: the
    /// median of the cells' means, which what moves in less than half of them does not shift.
    fn compare(&mut self, a: &[u8], b: &[u8]) -> i32 {
        let [width, height] = self.size;
        let area = |i: usize| {
            let (x, y) = (cell(i % CELLS, width).len(), cell(i / CELLS, height).len());
            (x * y).max(1) as i32
        };
        sum(self.size, a, b, &mut self.sums, |d| d);
        for (i, (mean, sum)) in self.sorted.iter_mut().zip(&self.sums).enumerate() {
            *mean = (f64::from(*sum) / f64::from(area(i))).round() as i32;
        }
        let (_, median, _) = self.sorted.select_nth_unstable(CELLS * CELLS / 2);
        let median = *median;
        sum(self.size, a, b, &mut self.sums, |d| (d - median).abs());
        for (i, (difference, sum)) in self.differences.iter_mut().zip(&self.sums).enumerate() {
            *difference = *sum as f32 / area(i) as f32;
        }
        median
    }
}

/// A cell's samples along a side.
fn cell(i: usize, length: usize) -> Range<usize> {
    i * length / CELLS..(i + 1) * length / CELLS
}

/// Sums a value of each sample's difference over each cell.
fn sum(size: [usize; 2], a: &[u8], b: &[u8], sums: &mut [i32], value: impl Fn(i32) -> i32) {
    let [width, height] = size;
    for (cy, sums) in sums.chunks_exact_mut(CELLS).enumerate() {
        sums.fill(0);
        for y in cell(cy, height) {
            let (a, b) = (&a[y * width..][..width], &b[y * width..][..width]);
            for (cx, sum) in sums.iter_mut().enumerate() {
                let pairs = a[cell(cx, width)].iter().zip(&b[cell(cx, width)]);
                *sum += pairs.map(|(a, b)| value(i32::from(*b) - i32::from(*a))).sum::<i32>();
            }
        }
    }
}

/// Which of one camera's hops are left out. A hop is when nothing has moved for so long that its scores depend on still
/// frames only, and those of the hop computed last did so too: they are held from then on, as if each hop were computed.
/// A gap, a cut or an engine that was loaded anew ends it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rest {
    settled: bool,
    resting: bool,
}

impl Rest {
    /// Whether the next hop is left out; `still` is its last frame's [`Frame::still`](crate::frame::Frame::still).
    pub fn skips(&self, still: u64, reach: &Reach) -> bool {
        self.settled && still >= settles_after(reach)
    }

    /// A hop was left out.
    pub fn skipped(&mut self) {
        self.resting = true;
    }

    /// A hop was computed; `warming`: its scores still see what lay before a cut or the beginning. True when its scores
    /// may be held.
    pub fn computed(&mut self, still: u64, warming: bool, reach: &Reach) -> bool {
        self.resting = false;
        self.settled = still >= settles_after(reach) && !warming;
        self.settled
    }

    /// What was held is no longer to be trusted.
    pub fn disturb(&mut self) {
        *self = Rest::default();
    }

    /// Whether the newest hop was left out.
    pub fn is_resting(&self) -> bool {
        self.resting
    }
}

/// Still frames in a row after which a mode's scores depend on no others: a window's, or all that its states reach.
fn settles_after(reach: &Reach) -> u64 {
    WINDOW.max(reach.warm_after) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 128;

    /// A room: edges, shades, a texture.
    fn room(i: usize) -> f64 {
        let (x, y) = ((i % SIZE) as f64, (i / SIZE) as f64);
        let furniture = if (30.0..60.0).contains(&x) && y > 70.0 { 60.0 } else { 0.0 };
        70.0 + furniture + 20.0 * (x * 0.5).sin() * (y * 0.3).cos() + y * 0.3
    }

    /// Noise of about a standard deviation of `sigma`, the same at every run.
    fn noise(tick: usize, sigma: f64) -> impl Fn(usize) -> f64 {
        let mut state = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(tick as u64 + 1) | 1;
        let mut uniform = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        };
        // The sum of four uniforms has a standard deviation of 0.58.
        let values: Vec<f64> =
            (0..SIZE * SIZE).map(|_| (0..4).map(|_| uniform()).sum::<f64>() / 0.58 * sigma).collect();
        move |i| values[i]
    }

    fn blob(tick: usize, from: usize, speed: f64, [w, h]: [f64; 2]) -> impl Fn(usize) -> f64 {
        let left = 20.0 + tick.saturating_sub(from) as f64 * speed;
        move |i| {
            let (x, y) = ((i % SIZE) as f64, (i / SIZE) as f64);
            // What part of the pixel it covers, so that it moves by less than pixels too.
            let covered = (x + 1.0).min(left + w) - x.max(left);
            if (50.0..50.0 + h).contains(&y) { 45.0 * covered.clamp(0.0, 1.0) } else { 0.0 }
        }
    }

    /// Plays `ticks` pictures; gives for each how long it has been still, and whether it changed.
    fn play(watch: &mut Stillness, ticks: Range<usize>, pixel: impl Fn(usize, usize) -> f64) -> Vec<Look> {
        let picture =
            |t: usize| (0..SIZE * SIZE).map(|i| pixel(t, i).round().clamp(0.0, 255.0) as u8).collect::<Vec<_>>();
        let mut before = picture(ticks.start);
        watch.begin(&before);
        let mut looks = Vec::new();
        for t in ticks.skip(1) {
            let now = picture(t);
            looks.push(watch.look(&before, &now, 1));
            before = now;
        }
        looks
    }

    fn watch() -> Stillness {
        Stillness::new([SIZE, SIZE])
    }

    /// A closure that gives each tick's noise once.
    fn noisy(ticks: usize, sigma: f64) -> Vec<Box<dyn Fn(usize) -> f64>> {
        (0..ticks).map(|t| Box::new(noise(t, sigma)) as Box<dyn Fn(usize) -> f64>).collect()
    }

    #[test]
    fn noise_alone_is_still_once_it_is_known() {
        for sigma in [0.0, 0.5, 1.0, 2.0] {
            let noise = noisy(260, sigma);
            let looks = play(&mut watch(), 0..260, |t, i| room(i) + noise[t](i));
            assert!(looks[130..].iter().all(|l| !l.changed), "sigma {sigma}");
            assert!(looks.last().unwrap().still >= 130, "sigma {sigma}: {:?}", looks.last());
        }
    }

    #[test]
    fn noise_that_is_too_heavy_moves() {
        let noise = noisy(200, 9.0);
        let looks = play(&mut watch(), 0..200, |t, i| room(i) + noise[t](i));
        assert!(looks[100..].iter().all(|l| l.still < WINDOW as u64));
    }

    #[test]
    fn a_limb_trips_it_within_two_pictures() {
        // An arm of 720p is some 4 x 12 here; 0.5 pixels a frame are 12 % of the picture's width a second.
        for (sigma, speed, size) in [(0.0, 0.5, [4.0, 12.0]), (1.0, 0.5, [4.0, 12.0]), (1.0, 1.0, [3.0, 6.0])] {
            let noise = noisy(220, sigma);
            let from = 180;
            let looks = play(&mut watch(), 0..220, |t, i| room(i) + noise[t](i) + blob(t, from, speed, size)(i));
            // The picture of tick t is look t - 1.
            assert!(looks[from - 2].still > WINDOW as u64, "sigma {sigma}: {:?}", looks[from - 2]);
            let first = looks[from..].iter().position(|l| l.still == 0);
            assert!(first.is_some_and(|f| f <= 2), "sigma {sigma}, speed {speed}: {first:?}");
            assert!(looks[from + 4..].iter().all(|l| l.still < 5), "sigma {sigma}");
        }
    }

    #[test]
    fn keyframes_that_pump_are_still() {
        // Each 25 frames the picture is drawn anew with other rounding: by up to 3 levels, in all of it.
        let redrawn: Vec<_> = (0..20).map(|k| noise(1000 + k, 2.5)).collect();
        let looks = play(&mut watch(), 0..500, |t, i| room(i) + redrawn[t / 25](i));
        assert!(looks.iter().filter(|l| l.changed).count() >= 15, "the test pumps");
        assert!(looks.iter().all(|l| l.still > 0), "and nothing moves");
    }

    #[test]
    fn slow_light_is_still_and_comes_to_rest_anew_now_and_then() {
        // 40 levels in 80 s: dusk is slower.
        let noise = noisy(2000, 0.7);
        let looks = play(&mut watch(), 0..2000, |t, i| (room(i) + t as f64 * 0.02) + noise[t](i));
        let moved = looks.iter().filter(|l| l.still == 0).count();
        assert!((1..=4).contains(&moved), "{moved}");
        // Gain instead of offset: what is bright changes more.
        let looks = play(&mut watch(), 0..2000, |t, i| room(i) * (1.0 + t as f64 * 1e-4) + noise[t](i));
        let moved = looks.iter().filter(|l| l.still == 0).count();
        assert!((1..=8).contains(&moved), "{moved}");
    }

    #[test]
    fn a_light_that_is_switched_on_moves_once() {
        let looks = play(&mut watch(), 0..200, |t, i| if t < 100 { room(i) } else { room(i) * 1.4 });
        let moved: Vec<usize> = (0..looks.len()).filter(|&i| looks[i].still == 0).collect();
        assert_eq!(moved, [99]);
    }

    #[test]
    fn a_clock_of_seconds_is_still_and_one_of_hundredths_moves() {
        // Two digits of 4 x 6 pixels, bright on dark.
        let digits = |n: usize, i: usize| {
            let (x, y) = (i % SIZE, i / SIZE);
            let lit = (100..108).contains(&x) && (4..10).contains(&y) && (x * 7 + y * 13 + n * 29) % 5 < 3;
            if lit { 150.0 } else { 0.0 }
        };
        let looks = play(&mut watch(), 0..400, |t, i| room(i) + digits(t / 25, i));
        assert!(looks.iter().any(|l| l.changed) && looks.iter().all(|l| l.still > 0));
        let looks = play(&mut watch(), 0..400, |t, i| room(i) + digits(t, i));
        assert!(looks[10..].iter().all(|l| l.still < WINDOW as u64));
    }

    #[test]
    fn what_creeps_moves_in_the_end() {
        // A person of 14 x 44, 1 pixel in 3 s: below what two neighbours show.
        let looks = play(&mut watch(), 0..900, |t, i| room(i) + blob(t, 0, 0.013, [14.0, 44.0])(i));
        assert!(looks.iter().any(|l| l.still == 0));
    }

    #[test]
    fn a_picture_of_another_size_begins_anew() {
        let mut watch = Stillness::new([64, 64]);
        watch.begin(&[0; 64 * 64]);
        assert_eq!(watch.look(&[0; 64 * 64], &[0; 64 * 64], 3), Look { still: 3, changed: false });
        assert_eq!(watch.look(&[0; 10], &[0; 10], 1), Look { still: 0, changed: true });
    }

    #[test]
    fn slow_cameras_and_small_pictures() {
        // 2 pictures a second, 5 pixels in height.
        let mut watch = Stillness::new([30, 5]);
        let picture =
            |t: u8| vec![t; 150].into_iter().enumerate().map(|(i, t)| if i % 30 < 4 { t } else { 9 }).collect();
        let all: Vec<Vec<u8>> = [10, 10, 10, 40, 70, 100].map(picture).to_vec();
        watch.begin(&all[0]);
        let looks: Vec<u64> = all.windows(2).map(|w| watch.look(&w[0], &w[1], 12).still).collect();
        assert_eq!(looks[..2], [12, 24]);
        assert_eq!(looks[3..], [0, 0]);
    }

    #[test]
    fn hops_are_left_out_only_behind_a_computed_one_that_saw_nothing_else() {
        let window = Reach::default();
        let mut rest = Rest::default();
        assert!(!rest.skips(1000, &window), "nothing to hold yet");
        assert!(!rest.computed(WINDOW as u64 - 1, false, &window));
        assert!(!rest.skips(WINDOW as u64 + 7, &window), "the one before saw a frame that moved");
        assert!(rest.computed(WINDOW as u64 + 7, false, &window));
        assert!(rest.skips(WINDOW as u64 + 15, &window));
        rest.skipped();
        assert!(rest.is_resting());
        assert!(!rest.skips(3, &window), "something moves");
        rest.computed(3, false, &window);
        assert!(!rest.is_resting());
        rest.computed(500, false, &window);
        rest.disturb();
        assert!(!rest.skips(508, &window), "a gap");
        // States that reach further must be still that far back, and warm.
        let carried = Reach { carried: true, warm_after: 107, ..Reach::default() };
        assert!(!rest.computed(100, false, &carried) && !rest.computed(200, true, &carried));
        assert!(rest.computed(107, false, &carried) && rest.skips(115, &carried));
    }
}
