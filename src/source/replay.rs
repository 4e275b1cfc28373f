//! Recordings in pure Rust: a folder of images, or a y4m file. They need no library of the system, so they work on
//! every board and in every test, and their pictures are exact to the byte.

use std::{
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Read},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Deserialize;

use super::{Options, Pace, Source, unreadable};
use crate::{
    error::{Error, Result},
    frame::{Matrix, Picture, Pixels, Plane},
};

/// The rate of a folder that doesn't say.
const DEFAULT_FPS: f64 = 25.0;
/// No picture is wider or higher than this: 8K has 7680, and a damaged header must not ask for all memory.
const LARGEST_SIDE: usize = 16384;

/// A recording that is read here.
pub struct Replay {
    reader: Reader,
    /// When the first picture was shown, if the recording plays at its own pace.
    realtime: Option<Option<Instant>>,
}

enum Reader {
    Y4m(Box<Y4m>),
    Folder(Folder),
}

impl Replay {
    /// Opens a folder of .png, .jpg and .bmp (in natural order: 2 before 10; at the rate that a `replay.toml` with
    /// `fps = 30` says, else 25 fps) or a y4m file.
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        if let Some(error) = unreadable(path) {
            return Err(error);
        }
        let reader = if path.is_dir() {
            Reader::Folder(Folder::open(path)?)
        } else {
            Reader::Y4m(Box::new(Y4m::open(path)?))
        };
        Ok(Replay { reader, realtime: options.realtime.then_some(None) })
    }
}

impl Source for Replay {
    fn next(&mut self) -> Result<Picture<'_>> {
        let mut dropped = 0;
        if let Some(start) = &mut self.realtime {
            let (time, after) = (self.reader.time_of_next(), self.reader.time_after_next());
            let start = *start.get_or_insert_with(|| Instant::now() - time);
            match start.elapsed().checked_sub(time) {
                None => std::thread::sleep(time - start.elapsed().min(time)),
                // Late: what has already been followed by another picture would have been overwritten by it.
                Some(_) => {
                    let mut followed_at = after;
                    while start.elapsed() >= followed_at && self.reader.skip()? {
                        dropped += 1;
                        followed_at = self.reader.time_after_next();
                    }
                }
            }
        }
        let picture = match &mut self.reader {
            Reader::Y4m(y4m) => y4m.next()?,
            Reader::Folder(folder) => folder.next()?,
        };
        Ok(Picture { dropped, ..picture })
    }

    fn pace(&self) -> Pace {
        if self.realtime.is_some() { Pace::Live } else { Pace::Recorded }
    }
}

impl Reader {
    fn time_of_next(&self) -> Duration {
        match self {
            Reader::Y4m(y4m) => y4m.time(y4m.given),
            Reader::Folder(folder) => folder.time(folder.given),
        }
    }

    fn time_after_next(&self) -> Duration {
        match self {
            Reader::Y4m(y4m) => y4m.time(y4m.given + 1),
            Reader::Folder(folder) => folder.time(folder.given + 1),
        }
    }

    /// Passes over one picture if another one follows it: the last picture of a recording is always shown.
    fn skip(&mut self) -> Result<bool> {
        match self {
            Reader::Y4m(y4m) => {
                if y4m.pictures_left() < 2 {
                    return Ok(false);
                }
                y4m.read()?;
                Ok(true)
            }
            Reader::Folder(folder) => {
                if folder.images.len() - (folder.given as usize) < 2 {
                    return Ok(false);
                }
                folder.given += 1;
                Ok(true)
            }
        }
    }
}

/// How a y4m file's chroma is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chroma {
    Mono,
    C420,
    C422,
    C444,
}

struct Y4m {
    path: PathBuf,
    file: BufReader<File>,
    size: u64,
    read: u64,
    width: usize,
    height: usize,
    chroma: Chroma,
    full_range: bool,
    /// Frames a second, as a fraction.
    rate: (u64, u64),
    given: u64,
    line: Vec<u8>,
    y: Vec<u8>,
    u: Vec<u8>,
    v: Vec<u8>,
    /// A chroma plane as the file has it, where it is not 4:2:0 yet.
    wide: Vec<u8>,
}

impl Y4m {
    fn open(path: &Path) -> Result<Self> {
        let failed = |e: std::io::Error| Error::config(format!("{} can't be read", path.display())).caused_by(e);
        let file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let mut y4m = Y4m {
            path: path.into(),
            file: BufReader::with_capacity(1 << 16, file),
            size,
            read: 0,
            width: 0,
            height: 0,
            chroma: Chroma::C420,
            full_range: false,
            rate: (25, 1),
            given: 0,
            line: Vec::new(),
            y: Vec::new(),
            u: Vec::new(),
            v: Vec::new(),
            wide: Vec::new(),
        };
        y4m.read_line().map_err(failed)?;
        let header = String::from_utf8_lossy(&y4m.line).into_owned();
        y4m.take_header(&header)
            .map_err(|what| Error::config(format!("{} is not a y4m file that can be played: {what}", path.display())))?;

        let (width, height) = (y4m.width, y4m.height);
        y4m.y = vec![0; width * height];
        let small = width.div_ceil(2) * height.div_ceil(2);
        // Grey pictures keep this for ever: 128 is no colour.
        (y4m.u, y4m.v) = (vec![128; small], vec![128; small]);
        let wide = y4m.wide_chroma();
        y4m.wide = vec![0; wide.0 * wide.1];
        Ok(y4m)
    }

    fn take_header(&mut self, header: &str) -> Result<(), String> {
        let mut words = header.split_ascii_whitespace();
        if words.next() != Some("YUV4MPEG2") {
            return Err("it does not begin with YUV4MPEG2".into());
        }
        for word in words {
            let (key, value) = word.split_at(word.chars().next().map_or(0, char::len_utf8));
            let number = || value.parse::<usize>().map_err(|_| format!("its header says {word}, which is no number"));
            match key {
                "W" => self.width = number()?,
                "H" => self.height = number()?,
                "F" => {
                    let rate = value.split_once(':').and_then(|(n, d)| Some((n.parse().ok()?, d.parse().ok()?)));
                    match rate {
                        Some((n @ 1..=1_000_000, d @ 1..=1_000_000)) => self.rate = (n, d),
                        Some((0, _)) => {} // not known, says the format's description
                        _ => return Err(format!("its header says {word}; a rate looks like F25:1")),
                    }
                }
                "C" => {
                    self.chroma = match value {
                        "420" | "420jpeg" | "420mpeg2" | "420paldv" => Chroma::C420,
                        "422" => Chroma::C422,
                        "444" => Chroma::C444,
                        "mono" => Chroma::Mono,
                        _ => {
                            return Err(format!(
                                "its pixels are {value}, which is not read here; \
                                 convert it with ffmpeg -i IN.y4m -pix_fmt yuv420p OUT.y4m"
                            ));
                        }
                    }
                }
                "X" => self.full_range |= value == "COLORRANGE=FULL",
                _ => {} // interlacing, the pixels' shape, comments
            }
        }
        match (self.width, self.height) {
            (1..=LARGEST_SIDE, 1..=LARGEST_SIDE) => Ok(()),
            (width, height) => Err(format!("its header says {width}x{height} pixels")),
        }
    }

    fn wide_chroma(&self) -> (usize, usize) {
        match self.chroma {
            Chroma::Mono | Chroma::C420 => (0, 0),
            Chroma::C422 => (self.width.div_ceil(2), self.height),
            Chroma::C444 => (self.width, self.height),
        }
    }

    fn time(&self, number: u64) -> Duration {
        let (n, d) = self.rate;
        Duration::from_nanos((u128::from(number) * 1_000_000_000 * u128::from(d) / u128::from(n)) as u64)
    }

    /// How many whole pictures are still in the file, if frame headers are the usual bare ones.
    fn pictures_left(&self) -> u64 {
        let chroma = match self.chroma {
            Chroma::Mono => 0,
            Chroma::C420 => 2 * self.u.len(),
            Chroma::C422 | Chroma::C444 => 2 * self.wide.len(),
        };
        (self.size - self.read.min(self.size)) / (self.y.len() + chroma + "FRAME\n".len()) as u64
    }

    /// A line without its end; a damaged file must not make this grow without end.
    fn read_line(&mut self) -> std::io::Result<()> {
        self.line.clear();
        let mut limited = (&mut self.file).take(4096);
        self.read += limited.read_until(b'\n', &mut self.line)? as u64;
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        }
        Ok(())
    }

    /// Reads one picture into the planes.
    fn read(&mut self) -> Result<()> {
        let at = self.time(self.given).as_secs_f64();
        let name = self.path.display();
        self.line.clear();
        let failed = |e| Error::internal(format!("{} can't be read on at {at:.1} s", self.path.display())).caused_by(e);
        let mut limited = (&mut self.file).take(4096);
        self.read += limited.read_until(b'\n', &mut self.line).map_err(failed)? as u64;
        if self.line.is_empty() {
            return Err(Error::end_of_stream());
        }
        if !self.line.starts_with(b"FRAME") || self.line.last() != Some(&b'\n') {
            // A cut in the five letters is a cut; anything else is damage.
            if b"FRAME".starts_with(&self.line[..self.line.len().min(5)]) {
                return Err(Error::end_of_stream());
            }
            return Err(Error::config(format!(
                "{name} is damaged after {at:.1} s: no FRAME where picture {} should begin; record or convert it again",
                self.given
            )));
        }
        let outcome = read_planes(self);
        match outcome {
            Ok(()) => {
                self.given += 1;
                Ok(())
            }
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
                log::warn!("{} is cut in the middle of picture {}, at {at:.1} s", self.path.display(), self.given);
                Err(Error::end_of_stream())
            }
            Err(e) => {
                Err(Error::internal(format!("{} can't be read on at {at:.1} s", self.path.display())).caused_by(e))
            }
        }
    }

    fn next(&mut self) -> Result<Picture<'_>> {
        self.read()?;
        let half = self.width.div_ceil(2);
        Ok(Picture {
            width: self.width,
            height: self.height,
            time: self.time(self.given - 1),
            dropped: 0,
            pixels: Pixels::I420 {
                y: Plane { data: &self.y, stride: self.width },
                u: Plane { data: &self.u, stride: half },
                v: Plane { data: &self.v, stride: half },
                matrix: if self.height > 576 { Matrix::Bt709 } else { Matrix::Bt601 },
                full_range: self.full_range,
            },
        })
    }
}

fn read_planes(y4m: &mut Y4m) -> std::io::Result<()> {
    let (wide_width, wide_height) = y4m.wide_chroma();
    let Y4m { file, read, y, u, v, wide, chroma, .. } = y4m;
    file.read_exact(y)?;
    *read += y.len() as u64;
    if *chroma == Chroma::Mono {
        return Ok(());
    }
    for plane in [u, v] {
        if *chroma == Chroma::C420 {
            file.read_exact(plane)?;
            *read += plane.len() as u64;
        } else {
            file.read_exact(wide)?;
            *read += wide.len() as u64;
            shrink_chroma(wide, wide_width, wide_height, *chroma == Chroma::C444, plane);
        }
    }
    Ok(())
}

/// Averages pairs of rows, and of columns too where both are too fine, into a 4:2:0 plane.
fn shrink_chroma(wide: &[u8], width: usize, height: usize, halve_width: bool, out: &mut [u8]) {
    let out_width = if halve_width { width.div_ceil(2) } else { width };
    for (row, line) in out.chunks_exact_mut(out_width).enumerate() {
        let upper = &wide[2 * row * width..][..width];
        let lower = &wide[(2 * row + 1).min(height - 1) * width..][..width];
        for (column, value) in line.iter_mut().enumerate() {
            let (left, right) =
                if halve_width { (2 * column, (2 * column + 1).min(width - 1)) } else { (column, column) };
            let sum: u16 = [upper[left], upper[right], lower[left], lower[right]].map(u16::from).iter().sum();
            *value = ((sum + 2) / 4) as u8;
        }
    }
}

struct Folder {
    images: Vec<PathBuf>,
    fps: f64,
    given: u64,
    rgb: image::RgbImage,
}

/// What `replay.toml` in a folder of images may say.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FolderConfig {
    fps: f64,
}

impl Folder {
    fn open(path: &Path) -> Result<Self> {
        let name = path.display();
        let failed = |e: std::io::Error| Error::config(format!("{name} can't be read")).caused_by(e);
        let mut images = Vec::new();
        for entry in std::fs::read_dir(path).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
            if ["png", "jpg", "jpeg", "bmp"].contains(&extension.as_str()) {
                images.push(path);
            }
        }
        if images.is_empty() {
            return Err(Error::config(format!(
                "{name} is a folder without images: give a folder of .png, .jpg or .bmp files, or a video file"
            )));
        }
        images.sort_by_cached_key(|path| natural_key(&path.file_name().unwrap_or_default().to_string_lossy()));

        let config = path.join("replay.toml");
        let fps = match std::fs::read_to_string(&config) {
            Err(e) if e.kind() == ErrorKind::NotFound => DEFAULT_FPS,
            Err(e) => return Err(Error::config(format!("{} can't be read", config.display())).caused_by(e)),
            Ok(text) => {
                let FolderConfig { fps } = toml::from_str(&text)
                    .map_err(|e| Error::config(format!("{} should say fps = 25", config.display())).caused_by(e))?;
                if !(0.001..=1000.0).contains(&fps) {
                    return Err(Error::config(format!(
                        "{} says fps = {fps}; a rate is between 0.001 and 1000",
                        config.display()
                    )));
                }
                fps
            }
        };
        Ok(Folder { images, fps, given: 0, rgb: image::RgbImage::new(0, 0) })
    }

    fn time(&self, number: u64) -> Duration {
        Duration::from_secs_f64(number as f64 / self.fps)
    }

    fn next(&mut self) -> Result<Picture<'_>> {
        let path = self.images.get(self.given as usize).ok_or_else(Error::end_of_stream)?;
        let image = image::ImageReader::open(path)
            .and_then(|reader| reader.with_guessed_format())
            .map_err(image::ImageError::from)
            .and_then(|reader| reader.decode())
            .map_err(|e| {
                Error::config(format!("{} is not an image that can be read: remove or replace it", path.display()))
                    .caused_by(e)
            })?;
        self.rgb = image.into_rgb8();
        self.given += 1;
        Ok(Picture {
            width: self.rgb.width() as usize,
            height: self.rgb.height() as usize,
            time: self.time(self.given - 1),
            dropped: 0,
            pixels: Pixels::Rgb(Plane { data: &self.rgb, stride: 3 * self.rgb.width() as usize }),
        })
    }
}

/// Orders names as a person does: runs of digits by their value (2 before 10), the rest by letters.
fn natural_key(name: &str) -> Vec<(u64, String)> {
    let mut key: Vec<(u64, String)> = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        key.push((number.parse().unwrap_or(if digits == 0 { 0 } else { u64::MAX }), tail[..letters].to_lowercase()));
        rest = &tail[letters..];
    }
    // What is equal so far (01 and 1) still needs one order.
    key.push((0, name.into()));
    key
}
