//! Recordings in pure Rust: a folder of images, a y4m file, a GIF. They need no library of the system, so they work on
//! every board and in every test, and their pictures are exact to the byte.

use std::{
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Read},
    path::{Path, PathBuf},
    sync::mpsc,
    time::{Duration, Instant},
};

use image::{AnimationDecoder, ImageDecoder};
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
/// What the decoder of an image may ask for, in bytes: 8K in RGBA has 133 MB. What it can't have ends the process.
const LARGEST_IMAGE: u64 = 512 << 20;

/// A recording that is read here.
pub struct Replay {
    reader: Reader,
    /// When the first picture was shown, if the recording plays at its own pace.
    realtime: Option<Option<Instant>>,
}

enum Reader {
    Y4m(Box<Y4m>),
    Folder(Folder),
    Gif(Gif),
}

/// Whether a file is one of those that are read here. Names lie, first bytes don't.
pub fn plays(path: &Path) -> bool {
    begins_with(path, b"GIF8") || begins_with(path, b"YUV4MPEG2")
}

fn begins_with(path: &Path, what: &[u8]) -> bool {
    let mut begin = vec![0; what.len()];
    File::open(path).and_then(|mut file| file.read_exact(&mut begin)).is_ok() && begin == what
}

impl Replay {
    /// Opens a folder of .png, .jpg and .bmp (in natural order: 2 before 10; at the rate that a `replay.toml` with
    /// `fps = 30` says, else 25 fps), a y4m file, or a GIF.
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        if let Some(error) = unreadable(path) {
            return Err(error);
        }
        let reader = if path.is_dir() {
            Reader::Folder(Folder::open(path)?)
        } else if begins_with(path, b"GIF8") {
            Reader::Gif(Gif::open(path)?)
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
            Reader::Gif(gif) => gif.next()?,
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
            Reader::Gif(gif) => gif.ahead.as_ref().map_or(Duration::ZERO, |ahead| ahead.time),
        }
    }

    fn time_after_next(&self) -> Duration {
        match self {
            Reader::Y4m(y4m) => y4m.time(y4m.given + 1),
            Reader::Folder(folder) => folder.time(folder.given + 1),
            Reader::Gif(gif) => gif.ahead.as_ref().map_or(Duration::ZERO, |ahead| ahead.until),
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
            Reader::Gif(gif) => {
                let follows = gif.images.recv();
                let skipped = follows.is_ok();
                if let Ok(image) = follows {
                    gif.take(image)?;
                }
                Ok(skipped)
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
    /// Where the file does not say: as the picture's height has it.
    matrix: Option<Matrix>,
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
            matrix: None,
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
        y4m.take_header(&header).map_err(|what| {
            Error::config(format!("{} is not a y4m file that can be played: {what}", path.display()))
        })?;

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
                "X" => match value {
                    "COLORRANGE=FULL" => self.full_range = true,
                    // Ours; see `record::frames`.
                    "MATRIX=BT601" => self.matrix = Some(Matrix::Bt601),
                    "MATRIX=BT709" => self.matrix = Some(Matrix::Bt709),
                    _ => {}
                },
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

    /// Reads a line into `line`; a damaged file must not make that grow without end.
    fn read_line(&mut self) -> std::io::Result<()> {
        self.line.clear();
        self.read += (&mut self.file).take(4096).read_until(b'\n', &mut self.line)? as u64;
        Ok(())
    }

    /// Reads one picture into the planes.
    fn read(&mut self) -> Result<()> {
        let outcome = self.read_line().and_then(|()| match self.line.as_slice() {
            [] => Ok(Some(false)),
            [b'F', b'R', b'A', b'M', b'E', .., b'\n'] => read_planes(self).map(|()| Some(true)),
            line if b"FRAME".starts_with(&line[..line.len().min(5)]) => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(None),
        });
        let at = self.time(self.given).as_secs_f64();
        let name = self.path.display();
        match outcome {
            Ok(Some(true)) => {
                self.given += 1;
                Ok(())
            }
            Ok(Some(false)) => Err(Error::end_of_stream()),
            Ok(None) => Err(Error::config(format!(
                "{name} is damaged after {at:.1} s: no FRAME where picture {} should begin; record or convert it again",
                self.given
            ))),
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
                log::warn!("{name} is cut in the middle of picture {}, at {at:.1} s", self.given);
                Err(Error::end_of_stream())
            }
            Err(e) => Err(Error::internal(format!("{name} can't be read on at {at:.1} s")).caused_by(e)),
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
                matrix: self.matrix.unwrap_or(if self.height > 576 { Matrix::Bt709 } else { Matrix::Bt601 }),
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

/// A header is a few bytes and may ask for any amount of memory.
fn limits() -> image::Limits {
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(LARGEST_SIDE as u32);
    limits.max_image_height = Some(LARGEST_SIDE as u32);
    limits.max_alloc = Some(LARGEST_IMAGE);
    limits
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
            .and_then(|mut reader| {
                reader.limits(limits());
                reader.decode()
            })
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

/// A GIF, decoded on a thread of its own since the decoder may not move between threads. The thread is never more than
/// one picture ahead, and ends when its channel does.
struct Gif {
    path: PathBuf,
    images: mpsc::Receiver<image::ImageResult<image::Frame>>,
    ahead: Option<GifImage>,
    shown: image::RgbImage,
    begun: bool,
}

fn bounded_gif(file: File) -> image::ImageResult<image::codecs::gif::GifDecoder<BufReader<File>>> {
    let mut decoder = image::codecs::gif::GifDecoder::new(BufReader::new(file))?;
    decoder.set_limits(limits())?;
    Ok(decoder)
}

struct GifImage {
    rgb: image::RgbImage,
    time: Duration,
    until: Duration,
}

impl Gif {
    fn open(path: &Path) -> Result<Self> {
        let file =
            File::open(path).map_err(|e| Error::config(format!("{} can't be read", path.display())).caused_by(e))?;
        let (sender, images) = mpsc::sync_channel(0);
        std::thread::Builder::new()
            .name("gif".into())
            .spawn(move || match bounded_gif(file) {
                Ok(decoder) => {
                    for image in decoder.into_frames() {
                        let failed = image.is_err();
                        if sender.send(image).is_err() || failed {
                            break;
                        }
                    }
                }
                Err(e) => {
                    let _ = sender.send(Err(e));
                }
            })
            .map_err(|e| Error::internal("no thread for a GIF").caused_by(e))?;
        let mut gif = Gif { path: path.into(), images, ahead: None, shown: Default::default(), begun: false };
        match gif.images.recv() {
            Ok(first) => gif.take(first)?,
            Err(_) => return Err(Error::config(format!("{} is a GIF without pictures", path.display()))),
        }
        Ok(gif)
    }

    fn take(&mut self, image: image::ImageResult<image::Frame>) -> Result<()> {
        let time = self.ahead.as_ref().map_or(Duration::ZERO, |ahead| ahead.until);
        let frame = match image {
            Ok(frame) => frame,
            Err(e) if self.begun => {
                let at = time.as_secs_f64();
                log::warn!("{} is cut short or damaged, it ends at {at:.1} s: {e}", self.path.display());
                self.ahead = None;
                return Ok(());
            }
            Err(e) => {
                return Err(
                    Error::config(format!("{} is not a GIF that can be read", self.path.display())).caused_by(e)
                );
            }
        };
        // Browsers show what says 0 or 1/100 s for 1/10 s, and GIFs are made to look right there.
        let delay = Duration::from(frame.delay());
        let delay = if delay < Duration::from_millis(20) { Duration::from_millis(100) } else { delay };
        let rgb = image::DynamicImage::from(frame.into_buffer()).into_rgb8();
        self.ahead = Some(GifImage { rgb, time, until: time + delay });
        self.begun = true;
        Ok(())
    }

    fn next(&mut self) -> Result<Picture<'_>> {
        let ahead = self.ahead.as_mut().ok_or_else(Error::end_of_stream)?;
        std::mem::swap(&mut self.shown, &mut ahead.rgb);
        let time = ahead.time;
        match self.images.recv() {
            Ok(image) => self.take(image)?,
            Err(_) => self.ahead = None,
        }
        Ok(Picture {
            width: self.shown.width() as usize,
            height: self.shown.height() as usize,
            time,
            dropped: 0,
            pixels: Pixels::Rgb(Plane { data: &self.shown, stride: 3 * self.shown.width() as usize }),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn open(path: &Path) -> Result<Replay> {
        Replay::open(path, &Options::default())
    }

    fn y4m(header: &str, body: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.y4m");
        std::fs::write(&path, [header.as_bytes(), b"\n", body].concat()).unwrap();
        (folder, path)
    }

    /// The planes of every picture, and its time in milliseconds, until the end.
    fn play(source: &mut Replay) -> (Vec<(u128, Vec<u8>)>, Error) {
        let mut pictures = Vec::new();
        loop {
            match source.next() {
                Ok(picture) => {
                    let data = match picture.pixels {
                        Pixels::I420 { y, u, v, .. } => [y.data, u.data, v.data].concat(),
                        Pixels::Rgb(plane) => plane.data.to_vec(),
                    };
                    pictures.push((picture.time.as_millis(), data));
                }
                Err(e) => return (pictures, e),
            }
        }
    }

    #[test]
    fn y4m_is_exact_to_the_byte_and_the_millisecond() {
        let body = b"FRAME\nabcdefUVFRAME Ip\nghijklWX";
        let (_folder, path) = y4m("YUV4MPEG2 W3 H2 F10:1 Ip A1:1 C420jpeg XYSCSS=420JPEG", &[body.as_slice()].concat());
        // 3x2 has chroma of 2x1.
        let (_folder2, path2) = y4m("YUV4MPEG2 W3 H2 F10:1", b"FRAME\nabcdefUVuvFRAME Ip\nghijklWXwx");
        let (pictures, end) = play(&mut open(&path2).unwrap());
        assert_eq!(pictures, [(0, b"abcdefUVuv".to_vec()), (100, b"ghijklWXwx".to_vec())]);
        assert_eq!(end.kind(), Kind::EndOfStream);
        // The first file's pictures are too short, so a header stands where pixels should: damage, not nonsense.
        let (pictures, end) = play(&mut open(&path).unwrap());
        assert_eq!((pictures.len(), end.kind()), (1, Kind::Config), "{end}");
        assert!(end.to_string().contains("is damaged after 0.1 s"), "{end}");
    }

    #[test]
    fn all_chroma_layouts_become_4_2_0() {
        for (chroma, body, expected) in [
            ("mono", &b"FRAME\nabcd"[..], &b"abcd\x80\x80"[..]),
            ("422", b"FRAME\nabcd\x0a\x14\x1e\x28", b"abcd\x0f\x23"),
            ("444", b"FRAME\nabcd\x0a\x0b\x0c\x0d\x14\x14\x14\x18", b"abcd\x0c\x15"),
            ("420mpeg2", b"FRAME\nabcdUV", b"abcdUV"),
        ] {
            let (_folder, path) = y4m(&format!("YUV4MPEG2 W2 H2 F25:1 C{chroma}"), body);
            let (pictures, end) = play(&mut open(&path).unwrap());
            assert_eq!(pictures, [(0, expected.to_vec())], "{chroma}");
            assert_eq!(end.kind(), Kind::EndOfStream);
        }
        // One pixel, where every neighbour is itself.
        for (chroma, body) in [("444", "FRAME\naUV"), ("422", "FRAME\naUV"), ("420", "FRAME\naUV")] {
            let (_folder, path) = y4m(&format!("YUV4MPEG2 W1 H1 C{chroma}"), body.as_bytes());
            assert_eq!(play(&mut open(&path).unwrap()).0, [(0, b"aUV".to_vec())]);
        }
    }

    #[test]
    fn a_rate_as_a_fraction_does_not_drift() {
        let (_folder, path) = y4m("YUV4MPEG2 W1 H1 F30000:1001 Cmono", &b"FRAME\na".repeat(30001));
        let mut source = open(&path).unwrap();
        let mut last = Duration::ZERO;
        while let Ok(picture) = source.next() {
            last = picture.time;
        }
        assert_eq!(last, Duration::from_secs(1001));
    }

    #[test]
    fn the_color_range_is_read_and_the_matrix_goes_by_size() {
        for (header, full, matrix) in [
            ("W1 H576 Cmono", false, Matrix::Bt601),
            ("W1 H720 Cmono XCOLORRANGE=FULL", true, Matrix::Bt709),
            ("W1 H720 C420jpeg XCOLORRANGE=LIMITED", false, Matrix::Bt709),
        ] {
            let (_folder, path) = y4m(&format!("YUV4MPEG2 {header}"), &[b"FRAME\n".to_vec(), vec![0; 2000]].concat());
            match open(&path).unwrap().next().unwrap().pixels {
                Pixels::I420 { matrix: m, full_range, .. } => assert_eq!((m, full_range), (matrix, full), "{header}"),
                Pixels::Rgb(_) => panic!("RGB"),
            }
        }
    }

    #[test]
    fn a_cut_file_gives_its_whole_pictures_and_ends() {
        let whole = b"FRAME\nabcdUVFRAME\nefghWX";
        for cut in 13..whole.len() {
            let (_folder, path) = y4m("YUV4MPEG2 W2 H2", &whole[..cut]);
            let (pictures, end) = play(&mut open(&path).unwrap());
            assert_eq!((pictures.len(), end.kind()), (1, Kind::EndOfStream), "cut at {cut}");
        }
    }

    #[test]
    fn a_damaged_header_is_told_in_a_sentence() {
        for (header, what) in [
            ("RIFF", "does not begin with YUV4MPEG2"),
            ("", "does not begin with YUV4MPEG2"),
            ("YUV4MPEG2 H2", "its header says 0x2 pixels"),
            ("YUV4MPEG2 W-1 H2", "W-1, which is no number"),
            ("YUV4MPEG2 W99999 H99999", "its header says 99999x99999 pixels"),
            ("YUV4MPEG2 W2 H2 F25", "F25; a rate looks like F25:1"),
            ("YUV4MPEG2 W2 H2 F25:0", "F25:0; a rate looks like F25:1"),
            ("YUV4MPEG2 W2 H2 C420p10", "its pixels are 420p10, which is not read here"),
            ("YUV4MPEG2 \u{fc} W2", "pixels"),
        ] {
            let (_folder, path) = y4m(header, b"");
            let error = open(&path).err().unwrap();
            assert_eq!(error.kind(), Kind::Config);
            assert!(error.to_string().contains(what) && error.to_string().contains("a.y4m"), "{header}: {error}");
        }
        // The rate may be unknown, says the format's description.
        let (_folder, path) = y4m("YUV4MPEG2 W2 H2 F0:0", b"");
        assert_eq!(open(&path).unwrap().next().unwrap_err().kind(), Kind::EndOfStream);
    }

    #[test]
    fn as_a_camera_it_keeps_its_own_pace_and_counts_what_it_drops() {
        let (_folder, path) = y4m("YUV4MPEG2 W1 H1 F100:1 Cmono", &b"FRAME\na".repeat(40));
        let begin = Instant::now();
        let mut source = Replay::open(&path, &Options { realtime: true, ..Options::default() }).unwrap();
        assert_eq!(source.pace(), Pace::Live);
        let (mut given, mut dropped, mut last) = (0, 0, Duration::ZERO);
        while let Ok(picture) = source.next() {
            given += 1;
            dropped += picture.dropped;
            last = picture.time;
            std::thread::sleep(Duration::from_millis(35));
        }
        assert_eq!(given + dropped, 40);
        assert!((5..=14).contains(&given), "{given} at 35 ms each of 390 ms");
        assert_eq!(last, Duration::from_millis(390), "the last picture is always shown");
        assert!(begin.elapsed() >= Duration::from_millis(390));
    }

    fn folder_of(images: &[(&str, u8)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in images {
            image::RgbImage::from_pixel(2, 1, image::Rgb([*value; 3])).save(folder.path().join(name)).unwrap();
        }
        folder
    }

    #[test]
    fn a_folder_is_played_in_the_order_that_a_person_sees() {
        let folder = folder_of(&[("f10.png", 10), ("f2.png", 2), ("F1.bmp", 1), ("f002.png", 3)]);
        std::fs::write(folder.path().join("notes.txt"), "not an image").unwrap();
        let (pictures, end) = play(&mut open(folder.path()).unwrap());
        assert_eq!(pictures.iter().map(|(t, p)| (*t, p[0])).collect::<Vec<_>>(), [(0, 1), (40, 3), (80, 2), (120, 10)]);
        assert_eq!(end.kind(), Kind::EndOfStream);

        std::fs::write(folder.path().join("replay.toml"), "fps = 12.5").unwrap();
        assert_eq!(play(&mut open(folder.path()).unwrap()).0[2].0, 160);
        for bad in ["fps = 0", "fps = \"x\"", "rate = 25", ""] {
            std::fs::write(folder.path().join("replay.toml"), bad).unwrap();
            let error = open(folder.path()).err().unwrap();
            assert!(error.kind() == Kind::Config && error.to_string().contains("replay.toml"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_folder_says_which_image_is_bad_and_when_there_are_none() {
        let folder = folder_of(&[("1.png", 1), ("3.png", 3)]);
        std::fs::write(folder.path().join("2.png"), "text").unwrap();
        let (pictures, error) = play(&mut open(folder.path()).unwrap());
        assert_eq!((pictures.len(), error.kind()), (1, Kind::Config));
        assert!(error.to_string().contains("2.png is not an image"), "{error}");

        let empty = tempfile::tempdir().unwrap();
        assert!(open(empty.path()).err().unwrap().to_string().contains("is a folder without images"));
        let missing = open(&empty.path().join("x.y4m")).err().unwrap();
        assert!(missing.kind() == Kind::Config && missing.to_string().contains("does not exist"), "{missing}");
    }

    #[test]
    fn a_gif_is_played_once_at_its_own_rate() {
        let folder = tempfile::tempdir().unwrap();
        // The name lies; what counts is what is in the file.
        let path = folder.path().join("a.mp4");
        let mut encoder = image::codecs::gif::GifEncoder::new(File::create(&path).unwrap());
        encoder.set_repeat(image::codecs::gif::Repeat::Infinite).unwrap();
        for (value, delay) in [(0, 50), (250, 0), (120, 200)] {
            let picture = image::RgbaImage::from_pixel(2, 1, image::Rgba([value, value, value, 255]));
            let delay = image::Delay::from_numer_denom_ms(delay, 1);
            encoder.encode_frame(image::Frame::from_parts(picture, 0, 0, delay)).unwrap();
        }
        drop(encoder);
        assert!(plays(&path));
        let (pictures, end) = play(&mut open(&path).unwrap());
        assert_eq!(pictures.iter().map(|(t, p)| (*t, p[0])).collect::<Vec<_>>(), [(0, 0), (50, 250), (150, 120)]);
        assert_eq!(end.kind(), Kind::EndOfStream);

        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 12]).unwrap();
        let (pictures, end) = play(&mut open(&path).unwrap());
        assert_eq!((pictures.len(), end.kind()), (2, Kind::EndOfStream), "{end}");
        std::fs::write(&path, &bytes[..8]).unwrap();
        assert_eq!(open(&path).err().unwrap().kind(), Kind::Config);
        drop(open(&path));
    }
    /// A few bytes that say they are a picture of gigabytes.
    #[test]
    fn an_image_that_asks_for_all_memory_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for side in [65535u16, 16384] {
            let size = [side.to_le_bytes(), side.to_le_bytes()].concat();
            let frame = [b",\0\0\0\0".as_slice(), &size, b"\0\x02\x02\x44\x01\0;"].concat();
            let path = folder.path().join("large.gif");
            let colours = b"\x80\0\0\0\0\0\xff\xff\xff";
            std::fs::write(&path, [b"GIF89a".as_slice(), &size, colours, &frame].concat()).unwrap();
            let error = open(&path).err().unwrap();
            assert!(error.kind() == Kind::Config && error.to_string().contains("large.gif"), "{error}");
            std::fs::remove_file(&path).unwrap();

            // A BMP that has its header and nothing else.
            let folder = tempfile::tempdir().unwrap();
            let side = i32::from(side).to_le_bytes();
            let header =
                [b"BM".as_slice(), &[0; 8], &[54, 0, 0, 0, 40, 0, 0, 0], &side, &side, &[1, 0, 24, 0], &[0; 24]];
            std::fs::write(folder.path().join("1.bmp"), header.concat()).unwrap();
            let (pictures, error) = play(&mut open(folder.path()).unwrap());
            assert!(pictures.is_empty() && error.to_string().contains("1.bmp"), "{error}");
        }
    }
}
