//! Recorded frames: y4m files that `replay:` plays back, 25 pictures a second, one for each frame that the recognizer had,
//! after privacy masks. A picture is shrunk by a whole factor to no less than 640x360 and what the model looks at;
//! where that is 1, the file holds the very samples.
//!
//! A file is named after the camera and its first frame's number; a cut in the video or a picture of another size begins
//! another one, so within a file nothing is missing.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::PathBuf,
};

use crate::{
    cadence::{Admission, FPS},
    frame::{Matrix, Picture, Pixels, Plane},
    scale::{Region, ViewSpec},
};

/// One camera's frames.
#[derive(Debug)]
pub struct Frames {
    folder: PathBuf,
    camera: String,
    /// Width and height of the watched part that must be left.
    least: [usize; 2],
    region: Region,
    file: Option<(File, Shape)>,
    path: PathBuf,
    /// Bytes of whole pictures in the file.
    length: u64,
    /// The picture before and this one, as they stand in a file.
    before: Vec<u8>,
    now: Vec<u8>,
    /// The disk is nearly full.
    stopped: bool,
}

/// What all pictures of a file have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    width: usize,
    height: usize,
    matrix: Matrix,
    full_range: bool,
}

/// What a person can still make out things in.
const LEAST: [usize; 2] = [640, 360];

const BEGIN: &[u8] = b"FRAME\n";

impl Frames {
    /// Files go to `folder`, which is made with the first one; `specs` say what the model looks at.
    pub fn new(folder: PathBuf, camera: &str, specs: &[ViewSpec], region: Region) -> Self {
        let least = specs.iter().fold([1, 1], |[w, h], spec| {
            let [width, height] = spec.luma_size().unwrap_or(spec.size);
            [w.max(width).max(spec.size[0]), h.max(height).max(spec.size[1])]
        });
        Frames {
            folder,
            camera: camera.into(),
            least,
            region,
            file: None,
            path: PathBuf::new(),
            length: 0,
            before: Vec::new(),
            now: Vec::new(),
            stopped: false,
        }
    }

    /// Takes a picture that became frames, the first of them with number `first`. When the disk is nearly full it says so once.
    pub fn take(&mut self, picture: &Picture, admission: Admission, first: u64) {
        if self.stopped {
            return;
        }
        if let Err(e) = self.try_take(picture, admission, first) {
            log::error!("camera {}: recording frames stops here, recognition goes on: {e}", self.camera);
            if let Some((file, _)) = self.file.take() {
                let _ = file.set_len(self.length);
            }
            (self.stopped, self.before, self.now) = (true, Vec::new(), Vec::new());
        }
    }

    fn try_take(&mut self, picture: &Picture, admission: Admission, first: u64) -> io::Result<()> {
        std::mem::swap(&mut self.before, &mut self.now);
        let shape = self.draw(picture);
        let (ticks, repeats) = match admission {
            Admission::Drop => return Ok(()),
            Admission::Start { .. } => {
                self.file = None;
                (1, 0)
            }
            Admission::Ticks { ticks, repeats, .. } => (ticks, repeats),
        };
        for tick in 0..ticks {
            let repeat = tick < repeats && self.file.as_ref().is_some_and(|(_, s)| *s == shape);
            match &self.file {
                Some((_, s)) if *s == shape => {}
                _ => self.begin(shape, first + tick)?,
            }
            if let Some((file, _)) = &mut self.file {
                let bytes = if repeat { &self.before } else { &self.now };
                super::leave_room(&self.folder, bytes.len())?;
                file.write_all(bytes)?;
                self.length += bytes.len() as u64;
            }
        }
        Ok(())
    }

    fn begin(&mut self, shape: Shape, first: u64) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        self.path = self.folder.join(format!("{}-{first:010}.y4m", self.camera));
        let mut file = OpenOptions::new().create_new(true).append(true).open(&self.path)?;
        let range = if shape.full_range { " XCOLORRANGE=FULL" } else { "" };
        let matrix = match shape.matrix {
            Matrix::Bt601 => "BT601",
            Matrix::Bt709 => "BT709",
        };
        let header =
            format!("YUV4MPEG2 W{} H{} F{FPS}:1 Ip A1:1 C420jpeg{range} XMATRIX={matrix}\n", shape.width, shape.height);
        file.write_all(header.as_bytes())?;
        self.length = header.len() as u64;
        self.file = Some((file, shape));
        Ok(())
    }

    /// Writes the picture to `now`.
    fn draw(&mut self, picture: &Picture) -> Shape {
        let [_, _, w, h] = self.region.0;
        let room = |size: usize, part: f64, least: usize| ((size as f64 * part) as usize / least).max(1);
        let model = room(picture.width, w, self.least[0]).min(room(picture.height, h, self.least[1]));
        let person = room(picture.width, 1.0, LEAST[0]).min(room(picture.height, 1.0, LEAST[1]));
        let factor = model.min(person);
        let (width, height) = ((picture.width / factor).max(1), (picture.height / factor).max(1));
        let (half_width, half_height) = (width.div_ceil(2), height.div_ceil(2));
        self.now.clear();
        self.now.extend_from_slice(BEGIN);
        match picture.pixels {
            Pixels::I420 { y, u, v, matrix, full_range } => {
                let half = [picture.width.div_ceil(2), picture.height.div_ceil(2)];
                shrink(&mut self.now, y, [picture.width, picture.height], [width, height], factor);
                shrink(&mut self.now, u, half, [half_width, half_height], factor);
                shrink(&mut self.now, v, half, [half_width, half_height], factor);
                Shape { width, height, matrix, full_range }
            }
            Pixels::Rgb(plane) => {
                let mean = |x: usize, y: usize, size: usize| rgb_mean(plane, picture, [x, y], size);
                let to = |[r, g, b]: [f32; 3], k: [f32; 4]| (k[0] * r + k[1] * g + k[2] * b + k[3] + 0.5) as u8;
                // ITU-R BT.601, full range, as JPEG has it.
                const Y: [f32; 4] = [0.299, 0.587, 0.114, 0.0];
                const U: [f32; 4] = [-0.168_736, -0.331_264, 0.5, 128.0];
                const V: [f32; 4] = [0.5, -0.418_688, -0.081_312, 128.0];
                for y in 0..height {
                    self.now.extend((0..width).map(|x| to(mean(x * factor, y * factor, factor), Y)));
                }
                for k in [U, V] {
                    for y in 0..half_height {
                        let row = (0..half_width).map(|x| to(mean(2 * x * factor, 2 * y * factor, 2 * factor), k));
                        self.now.extend(row);
                    }
                }
                Shape { width, height, matrix: Matrix::Bt601, full_range: true }
            }
        }
    }
}

/// Averages squares of `factor` samples; what lies outside the plane is not counted.
fn shrink(
    out: &mut Vec<u8>,
    plane: Plane,
    [width, height]: [usize; 2],
    [to_width, to_height]: [usize; 2],
    factor: usize,
) {
    let row = |y: usize| {
        let start = (y.min(height - 1) * plane.stride).min(plane.data.len());
        &plane.data[start..(start + width).min(plane.data.len())]
    };
    for y in 0..to_height {
        if factor == 1 {
            let row = row(y);
            out.extend((0..to_width).map(|x| *row.get(x).unwrap_or(&0)));
            continue;
        }
        for x in 0..to_width {
            let (mut sum, mut count) = (0u32, 0u32);
            for y in y * factor..((y + 1) * factor).min(height) {
                let row = row(y);
                let samples = &row[(x * factor).min(row.len())..((x + 1) * factor).min(row.len())];
                sum += samples.iter().map(|s| u32::from(*s)).sum::<u32>();
                count += samples.len() as u32;
            }
            out.push(((sum + count / 2) / count.max(1)) as u8);
        }
    }
}

fn rgb_mean(plane: Plane, picture: &Picture, [x, y]: [usize; 2], size: usize) -> [f32; 3] {
    let (mut sum, mut count) = ([0u32; 3], 0u32);
    for y in y..(y + size).min(picture.height) {
        for x in x..(x + size).min(picture.width) {
            if let Some([r, g, b]) = plane.data.get(y * plane.stride + x * 3..).and_then(|p| p.first_chunk()) {
                sum = [sum[0] + u32::from(*r), sum[1] + u32::from(*g), sum[2] + u32::from(*b)];
                count += 1;
            }
        }
    }
    sum.map(|s| s as f32 / count.max(1) as f32)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        model::Fit,
        source::{self, Uri},
    };

    fn spec(size: usize) -> Vec<ViewSpec> {
        vec![ViewSpec { size: [size, size], fit: Fit::Squeeze, rgb: true, flow: None }]
    }

    /// A picture's samples, each plane one after the other.
    fn i420(width: usize, height: usize, seed: usize) -> Vec<u8> {
        let count = width * height + 2 * width.div_ceil(2) * height.div_ceil(2);
        (0..count).map(|i| ((i * 31 + seed * 97) % 251) as u8).collect()
    }

    fn picture(data: &[u8], width: usize, height: usize, matrix: Matrix) -> Picture<'_> {
        let (y, rest) = data.split_at(width * height);
        let (u, v) = rest.split_at(width.div_ceil(2) * height.div_ceil(2));
        let plane = |data, stride| Plane { data, stride };
        let half = width.div_ceil(2);
        let pixels =
            Pixels::I420 { y: plane(y, width), u: plane(u, half), v: plane(v, half), matrix, full_range: false };
        Picture { width, height, time: Duration::ZERO, dropped: 0, pixels }
    }

    /// What a recorded file plays back: each picture's luma, and the matrix.
    fn played(path: PathBuf) -> Vec<(Vec<u8>, Matrix, Duration)> {
        let mut source =
            source::open(&Uri::Replay(path), &source::Options::default(), &crate::time::Shutdown::new()).unwrap();
        let mut all = Vec::new();
        while let Ok(picture) = source.next() {
            let Pixels::I420 { y, matrix, .. } = picture.pixels else { panic!() };
            all.push((y.data.to_vec(), matrix, picture.time));
        }
        all
    }

    #[test]
    fn a_small_picture_is_kept_to_the_byte_and_each_frame_has_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut frames = Frames::new(folder.path().join("x"), "door", &spec(64), Region::WHOLE);
        let data: Vec<Vec<u8>> = (0..4).map(|seed| i420(101, 67, seed)).collect();
        let at = |seed: usize| picture(&data[seed], 101, 67, Matrix::Bt709);
        frames.take(&at(0), Admission::Start { lost: 0 }, 0);
        frames.take(&at(1), Admission::Ticks { ticks: 3, repeats: 1, scale: 1.0 }, 1);
        frames.take(&at(2), Admission::Drop, 4);
        frames.take(&at(3), Admission::Start { lost: 20 }, 24);
        let played_back = played(folder.path().join("x/door-0000000000.y4m"));
        let expected = [0, 0, 1, 1].map(|seed: usize| data[seed][..101 * 67].to_vec());
        assert_eq!(played_back.iter().map(|p| p.0.clone()).collect::<Vec<_>>(), expected);
        assert!(played_back.iter().all(|p| p.1 == Matrix::Bt709));
        assert_eq!(played_back[3].2, Duration::from_millis(120));
        assert_eq!(played(folder.path().join("x/door-0000000024.y4m")).len(), 1);
    }

    #[test]
    fn a_large_picture_is_shrunk_to_what_the_model_and_a_person_need() {
        let folder = tempfile::tempdir().unwrap();
        let mut frames = Frames::new(folder.path().into(), "door", &spec(128), Region::WHOLE);
        let luma = 1920 * 1080;
        let data: Vec<u8> = (0..luma * 3 / 2).map(|i| if i < luma { (i % 1920 / 12) as u8 } else { 128 }).collect();
        frames.take(&picture(&data, 1920, 1080, Matrix::Bt709), Admission::Start { lost: 0 }, 0);
        let rows = &played(folder.path().join("door-0000000000.y4m"))[0].0;
        assert_eq!(rows.len(), 640 * 360);
        assert!(rows[..640].iter().enumerate().all(|(x, s)| usize::from(*s) == x / 4), "{:?}", &rows[..640]);
        // Of a part of the picture the model needs more.
        frames.region = Region([0.0, 0.0, 0.2, 0.2]);
        frames.take(&picture(&data, 1920, 1080, Matrix::Bt709), Admission::Start { lost: 0 }, 1);
        assert_eq!(played(folder.path().join("door-0000000001.y4m"))[0].0.len(), luma);
        // RGB has no planes to shrink.
        let grey: Vec<u8> = (0..1280 * 720).flat_map(|i| [(i % 1280 / 2 % 256) as u8; 3]).collect();
        let pixels = Pixels::Rgb(Plane { data: &grey, stride: 1280 * 3 });
        let rgb = Picture { width: 1280, height: 720, time: Duration::ZERO, dropped: 0, pixels };
        frames.region = Region::WHOLE;
        frames.take(&rgb, Admission::Ticks { ticks: 1, repeats: 0, scale: 1.0 }, 2);
        let rows = &played(folder.path().join("door-0000000002.y4m"))[0].0;
        assert_eq!((rows.len(), rows[0], rows[200], rows[300]), (640 * 360, 0, 200, 44));
    }

    #[test]
    fn a_full_disk_stops_it_once() {
        let mut frames = Frames::new("/dev/full/x".into(), "door", &spec(64), Region::WHOLE);
        let data = i420(64, 64, 0);
        for n in 0..3 {
            frames.take(&picture(&data, 64, 64, Matrix::Bt601), Admission::Start { lost: 0 }, n);
            assert!(frames.stopped && frames.now.is_empty());
        }
    }
}
