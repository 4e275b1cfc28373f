//! What is wrong with a camera's picture although pictures come: frozen, black, covered. A dead stream is the source's
//! to tell; a stream that lives and shows nothing looks like a quiet room, and is told here.

use std::{
    fmt,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hasher},
    time::Duration,
};

use crate::frame::{Picture, Pixels, Plane};

/// How long a picture must be wrong before it is told: a light that is switched off or a hand before the lens is none.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Cells that brightness is looked at in, across and down, and samples in each of them along each side.
const CELLS: [usize; 2] = [16, 9];
const SAMPLES: usize = 4;

/// Cells as dark as this, and as even, are black: video's black is 16, and sensors add some noise to it.
const BLACK: f32 = 28.0;
/// Standard deviation of the cells' brightness, in grey levels, below which there is nothing to be seen: the emptiest
/// wall has more by its light and the lens's shade alone.
const EVEN: f32 = 2.5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Every picture has been the same to the byte, which no sensor gives.
    Frozen,
    Black,
    /// Evenly bright or dark: something is before the lens.
    Covered,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Fault::Frozen => "the picture is frozen: not a byte of it changes",
            Fault::Black => "the picture is black",
            Fault::Covered => "the picture is blank, as if something covered the lens",
        })
    }
}

/// Watches one camera's pictures.
#[derive(Debug, Default)]
pub struct Watch {
    last: Option<u64>,
    /// What the picture now could be told as, and since when it is so.
    suspected: Option<(Fault, Duration)>,
    told: Option<Fault>,
}

impl Watch {
    /// Looks at the next picture. `Some(Some(fault))` when a fault is there for [`PATIENCE`], `Some(None)` when it is
    /// over; each once.
    pub fn look(&mut self, picture: &Picture) -> Option<Option<Fault>> {
        let luma = Luma::of(picture);
        let hash = luma.hash();
        let same = self.last.replace(hash) == Some(hash);
        // A lost signal is black and frozen: black says more.
        let now = luma.blank().or(same.then_some(Fault::Frozen));
        let Some(fault) = now else {
            self.suspected = None;
            return self.told.take().map(|_| None);
        };
        // Time that goes back is a stream that began anew.
        let since = match self.suspected {
            Some((before, since)) if before == fault && since <= picture.time => since,
            _ => picture.time,
        };
        self.suspected = Some((fault, since));
        if picture.time - since < PATIENCE || self.told == Some(fault) {
            return None;
        }
        self.told = Some(fault);
        Some(Some(fault))
    }

    /// The fault that is there now.
    pub fn fault(&self) -> Option<Fault> {
        self.told
    }
}

/// A picture's brightness as it came: the luma plane, or packed RGB's green.
struct Luma<'a> {
    plane: Plane<'a>,
    width: usize,
    height: usize,
    channels: usize,
}

impl<'a> Luma<'a> {
    fn of(picture: &Picture<'a>) -> Self {
        let (plane, channels) = match picture.pixels {
            Pixels::I420 { y, .. } => (y, 1),
            Pixels::Rgb(plane) => (plane, 3),
        };
        Luma { plane, width: picture.width, height: picture.height, channels }
    }

    fn row(&self, y: usize) -> &'a [u8] {
        let start = (y * self.plane.stride).min(self.plane.data.len());
        let end = (start + self.width * self.channels).min(self.plane.data.len());
        &self.plane.data[start..end]
    }

    /// Of every eighth row, whole: a living sensor changes something in each.
    fn hash(&self) -> u64 {
        let mut hasher = BuildHasherDefault::<DefaultHasher>::default().build_hasher();
        (0..self.height).step_by(8).for_each(|y| hasher.write(self.row(y)));
        hasher.finish()
    }

    fn blank(&self) -> Option<Fault> {
        let mut cells = [0f32; CELLS[0] * CELLS[1]];
        let place = |cell: usize, sample: usize, cells: usize, size: usize| {
            ((cell * SAMPLES + sample) * 2 + 1) * size / (cells * SAMPLES * 2)
        };
        for (i, cell) in cells.iter_mut().enumerate() {
            let mut sum = 0u32;
            for sy in 0..SAMPLES {
                let row = self.row(place(i / CELLS[0], sy, CELLS[1], self.height));
                for sx in 0..SAMPLES {
                    let x = place(i % CELLS[0], sx, CELLS[0], self.width);
                    sum += u32::from(*row.get(x * self.channels + self.channels / 2).unwrap_or(&0));
                }
            }
            *cell = sum as f32 / (SAMPLES * SAMPLES) as f32;
        }
        let mean = cells.iter().sum::<f32>() / cells.len() as f32;
        let spread = (cells.iter().map(|c| (c - mean).powi(2)).sum::<f32>() / cells.len() as f32).sqrt();
        match spread < EVEN {
            true if mean < BLACK => Some(Fault::Black),
            true => Some(Fault::Covered),
            false => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 320;
    const HEIGHT: usize = 180;

    /// A sensor's noise, the same at every run.
    fn noise(seed: usize, amplitude: u8) -> impl Fn(usize) -> u8 {
        move |i| {
            let x = (i + seed * 7919).wrapping_mul(2_654_435_761) >> 7;
            (x % (2 * usize::from(amplitude) + 1)) as u8
        }
    }

    /// Plays `seconds` of pictures at 10 a second; gives what was told and when.
    fn play(
        watch: &mut Watch,
        from: u64,
        seconds: u64,
        pixel: impl Fn(usize, usize) -> u8,
    ) -> Vec<(u64, Option<Fault>)> {
        let mut told = Vec::new();
        for tick in from * 10..(from + seconds) * 10 {
            let data: Vec<u8> = (0..WIDTH * HEIGHT).map(|i| pixel(i, tick as usize)).collect();
            let plane = Plane { data: &data, stride: WIDTH };
            let grey = Plane { data: &[128; WIDTH * HEIGHT / 4], stride: WIDTH / 2 };
            let picture = Picture {
                width: WIDTH,
                height: HEIGHT,
                time: Duration::from_millis(tick * 100),
                dropped: 0,
                pixels: Pixels::I420 {
                    y: plane,
                    u: grey,
                    v: grey,
                    matrix: crate::frame::Matrix::Bt601,
                    full_range: false,
                },
            };
            told.extend(watch.look(&picture).map(|fault| (tick / 10, fault)));
        }
        told
    }

    fn scene(i: usize, tick: usize) -> u8 {
        60 + (i % WIDTH / 4) as u8 + noise(tick, 2)(i)
    }

    #[test]
    fn a_quiet_room_is_no_fault() {
        let mut watch = Watch::default();
        assert_eq!(play(&mut watch, 0, 30, scene), []);
        // An empty wall, lit a little from one side.
        let wall = |i: usize, tick: usize| 150 + (i % WIDTH / 32) as u8 + noise(tick, 3)(i);
        assert_eq!(play(&mut watch, 30, 30, wall), []);
    }

    #[test]
    fn a_frozen_picture_is_told_once_and_its_end_too() {
        let mut watch = Watch::default();
        assert_eq!(play(&mut watch, 0, 5, scene), []);
        assert_eq!(play(&mut watch, 5, 30, |i, _| scene(i, 0)), [(15, Some(Fault::Frozen))]);
        assert_eq!(watch.fault(), Some(Fault::Frozen));
        assert_eq!(play(&mut watch, 35, 5, scene), [(35, None)]);
        assert_eq!(watch.fault(), None);
        // One picture that differs begins the wait anew.
        let hiccup = |i: usize, tick: usize| scene(i, usize::from(tick.is_multiple_of(80)));
        assert_eq!(play(&mut watch, 40, 40, hiccup), []);
    }

    #[test]
    fn black_and_covered_are_told_apart() {
        let mut watch = Watch::default();
        assert_eq!(play(&mut watch, 0, 20, |i, tick| 16 + noise(tick, 3)(i)), [(10, Some(Fault::Black))]);
        assert_eq!(play(&mut watch, 20, 5, scene), [(20, None)]);
        assert_eq!(play(&mut watch, 50, 11, |_, _| 16), [(60, Some(Fault::Black))]);
        assert_eq!(play(&mut watch, 70, 1, scene), [(70, None)]);
        assert_eq!(play(&mut watch, 75, 20, |i, tick| 70 + noise(tick, 3)(i)), [(85, Some(Fault::Covered))]);
    }

    #[test]
    fn a_stream_that_begins_anew_has_its_time_anew() {
        let mut watch = Watch::default();
        assert_eq!(play(&mut watch, 100, 5, |i, _| scene(i, 0)), []);
        assert_eq!(play(&mut watch, 0, 9, |i, _| scene(i, 0)), []);
    }

    #[test]
    fn a_plane_that_is_too_short_is_no_panic() {
        let plane = Plane { data: &[0; 10], stride: 3000 };
        let picture =
            Picture { width: 1000, height: 1000, time: Duration::ZERO, dropped: 0, pixels: Pixels::Rgb(plane) };
        assert_eq!(Watch::default().look(&picture), None);
    }
}
