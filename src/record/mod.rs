//! Recorded scores: all that the deciders were given, from which the same events come out again.
//!
//! One file a run, `scores-<UTC time>.rec`, written in one go from its first byte and only ever added to:
//!
//! ```text
//! "actiond scores 1\n"
//! then pieces:  u32 length of the body | u32 CRC-32 of the body | body        (numbers are little-endian)
//! a body:       u8 kind, and
//!   1 header    JSON: device, mode, hop, lag, model.toml as it stands, labels, [events], who wrote it; the first piece
//!   2 camera    u16 number, JSON: id, source (without passwords), epoch
//!   3 engine    JSON: backend, precision; holds until the next one
//!   4 hop       u16 camera, seen, u64 first frame, u64 last frame, u8 streams, then f32 scores: fused, and those of each
//!               stream; 255 streams: the very scores of the camera's hop before, none follow
//!   5 gap       u16 camera, u64 frames lost
//!   6 end       u16 camera, seen, u64 last frame
//!   7 retuned   JSON: [events] that hold from here on, for all cameras
//! seen:         i64 nanoseconds since 1970 of the newest frame, u32 milliseconds from there to the decision, u8 flags
//!               (1 warming, 2 degraded, 4 still, 8 the wall clock was set), and with the last i64 nanoseconds by which it was
//!               set since the start
//! a stream:     u8, 0 when it was left out, else 1 and a score a label
//! ```
//!
//! A piece goes to the file in one call before the hop's events are told. Of a process that is killed nothing is lost but
//! half a piece at the end, which a reader passes over; a power cut may take what the system had not written yet.

pub mod frames;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    camera::Camera,
    config::{self, Mode},
    decide::{Decider, HopScores, Scores},
    error::{Error, Result},
    event::Event,
    inference::Lane,
    journal::{Room, room},
    model::{Decision, Model},
    tell::{About, Engine, Given, Seen, Teller},
};

const MAGIC: &[u8] = b"actiond scores 1\n";

/// A header holds a manifest and labels; nothing comes near this.
const LONGEST: usize = 1 << 24;

/// No frame is numbered higher, 300 years at 25 a second: more would be a damaged number, and overflow dates.
const LAST_FRAME: u64 = 1 << 38;

const HEADER: u8 = 1;
const CAMERA: u8 = 2;
const ENGINE: u8 = 3;
const HOP: u8 = 4;
const GAP: u8 = 5;
const END: u8 = 6;
const RETUNED: u8 = 7;

const SAME: u8 = 255;

/// What a recording is of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the program that wrote it.
    pub actiond: String,
    pub started: Timestamp,
    pub device: String,
    pub mode: Mode,
    /// Frames from one hop to the next, at 25 a second.
    pub hop: usize,
    pub fps: u64,
    /// Frames by which scores look further back than those of a window.
    pub lag: f32,
    /// `model.toml`, which names each file with its SHA-256, and the SHA-256 of itself.
    pub manifest: String,
    pub sha256: String,
    pub labels: Vec<String>,
    /// The config's `[events]`.
    pub events: Decision,
}

/// A camera of a recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CameraEntry {
    pub id: String,
    /// Without passwords.
    pub source: String,
    /// Wall time of frame 0, for a recording.
    pub epoch: Option<Timestamp>,
}

impl Header {
    /// Errors: `Model` when its manifest can't be read any more.
    pub fn new(device: &str, model: &Model, mode: Mode, hop: usize, lag: f32, events: &Decision) -> Result<Self> {
        let path = model.folder.join("model.toml");
        let manifest = fs::read_to_string(&path)
            .map_err(|e| Error::model(format!("cannot read {}", path.display())).caused_by(e))?;
        Ok(Header {
            actiond: env!("CARGO_PKG_VERSION").into(),
            started: Timestamp::now(),
            device: device.into(),
            mode,
            hop,
            fps: crate::cadence::FPS,
            lag,
            sha256: Sha256::digest(&manifest).iter().map(|b| format!("{b:02x}")).collect(),
            manifest,
            labels: model.labels.clone(),
            events: events.clone(),
        })
    }

    /// The model as far as decisions go: its files need not be there.
    ///
    /// Errors: `Config` when it holds none.
    pub fn model(&self) -> Result<Model> {
        let manifest = config::parse_toml(&self.manifest, "the recording's model.toml")
            .map_err(|e| Error::config(e.to_string()))?;
        Ok(Model { folder: PathBuf::new(), manifest, labels: self.labels.clone() })
    }
}

/// Recordings end while this much is free, or a twentieth of a small disk: the journal must not go short of room for them.
const LEFT: u64 = 256 << 20;

/// Errors: `StorageFull` where a recording should not write so many bytes more.
fn leave_room(folder: &Path, bytes: usize) -> io::Result<()> {
    let Room { size, free } = room(folder)?;
    let left = LEFT.min(size / 20);
    if free >= left.saturating_add(bytes as u64) {
        return Ok(());
    }
    let what = format!("the disk is nearly full, and its last {} MB are not for recordings", left.div_ceil(1 << 20));
    Err(io::Error::new(io::ErrorKind::StorageFull, what))
}

/// Writes a run's scores. Recording is beside the point of a daemon: when the disk is nearly full it says so once, and
/// stops.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    file: Option<File>,
    /// Bytes of whole pieces.
    length: u64,
    cameras: Vec<CameraEntry>,
    /// Which of them stand in the file, and each one's last scores.
    told: Vec<Option<Scores>>,
    engine: Option<Engine>,
    piece: Vec<u8>,
}

impl Recorder {
    /// Begins a recording in a folder, which need not be there.
    ///
    /// Errors: `Unavailable` when it can't be written.
    pub fn create(folder: &Path, header: &Header, cameras: &[Arc<Camera>], sources: &[String]) -> Result<Self> {
        let cannot = |e: io::Error| {
            Error::unavailable(format!("cannot record to {}: choose another folder, or make room", folder.display()))
                .caused_by(e)
        };
        fs::create_dir_all(folder).map_err(cannot)?;
        // To the microsecond, so that a daemon that restarts at once has a file of its own.
        let path = folder.join(format!("scores-{}.rec", header.started.strftime("%Y%m%dT%H%M%S%.6fZ")));
        let file = OpenOptions::new().create_new(true).append(true).open(&path).map_err(cannot)?;
        let entries = cameras.iter().zip(sources);
        let cameras: Vec<CameraEntry> = entries
            .map(|(c, source)| CameraEntry { id: c.id.clone(), source: source.clone(), epoch: c.epoch })
            .collect();
        let mut recorder = Recorder {
            path,
            file: Some(file),
            length: 0,
            told: vec![None; cameras.len()],
            cameras,
            engine: None,
            piece: Vec::new(),
        };
        let json = serde_json::to_vec(header).map_err(|e| Error::internal("JSON").caused_by(e))?;
        recorder.begin(HEADER);
        recorder.piece.extend(json);
        recorder.seal();
        recorder.piece.splice(0..0, MAGIC.iter().copied());
        recorder.append().map_err(cannot)?;
        Ok(recorder)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps what a decider is given.
    pub fn given(&mut self, camera: Lane, engine: &Engine, given: &Given) {
        if self.file.is_some() && camera.0 < self.cameras.len() {
            let kept = self.try_given(camera.0, engine, given);
            self.stop_if_failed(kept);
        }
    }

    /// Keeps the settings that deciders have from now on.
    pub fn retuned(&mut self, events: &Decision) {
        if self.file.is_some() {
            let kept = self.try_retuned(events);
            self.stop_if_failed(kept);
        }
    }

    fn stop_if_failed(&mut self, kept: io::Result<()>) {
        if let Err(e) = kept {
            log::error!("{}: recording stops here, recognition goes on: {e}", self.path.display());
            // What is whole stays.
            if let Some(file) = self.file.take() {
                let _ = file.set_len(self.length);
            }
        }
    }

    fn try_retuned(&mut self, events: &Decision) -> io::Result<()> {
        self.begin(RETUNED);
        serde_json::to_writer(&mut self.piece, events)?;
        self.finish()
    }

    fn try_given(&mut self, camera: usize, engine: &Engine, given: &Given) -> io::Result<()> {
        if self.told[camera].is_none() {
            self.begin(CAMERA);
            self.piece.extend((camera as u16).to_le_bytes());
            serde_json::to_writer(&mut self.piece, &self.cameras[camera])?;
            self.finish()?;
            self.told[camera] = Some(Scores::default());
        }
        if self.engine.as_ref() != Some(engine) {
            self.begin(ENGINE);
            serde_json::to_writer(&mut self.piece, engine)?;
            self.finish()?;
            self.engine = Some(engine.clone());
        }
        match given {
            Given::Hop { hop, seen } => {
                self.begin(HOP);
                self.piece.extend((camera as u16).to_le_bytes());
                self.seen(seen);
                self.piece.extend(hop.first_frame.to_le_bytes());
                self.piece.extend(hop.last_frame.to_le_bytes());
                // Those of a still picture.
                if self.told[camera].as_ref().is_some_and(|before| same(before, hop.scores)) {
                    self.piece.push(SAME);
                } else {
                    self.piece.push(hop.scores.streams.len() as u8);
                    hop.scores.fused.iter().for_each(|score| self.piece.extend(score.to_le_bytes()));
                    for stream in &hop.scores.streams {
                        self.piece.push(u8::from(!stream.is_empty()));
                        stream.iter().for_each(|score| self.piece.extend(score.to_le_bytes()));
                    }
                    if let Some(before) = &mut self.told[camera] {
                        before.clone_from(hop.scores);
                    }
                }
            }
            Given::Gap { lost } => {
                self.begin(GAP);
                self.piece.extend((camera as u16).to_le_bytes());
                self.piece.extend(lost.to_le_bytes());
            }
            Given::End { last_frame, seen } => {
                self.begin(END);
                self.piece.extend((camera as u16).to_le_bytes());
                self.seen(seen);
                self.piece.extend(last_frame.to_le_bytes());
            }
        }
        self.finish()
    }

    fn seen(&mut self, seen: &Seen) {
        let nanoseconds = i64::try_from(seen.at.as_nanosecond()).unwrap_or(i64::MAX);
        self.piece.extend(nanoseconds.to_le_bytes());
        self.piece.extend(u32::try_from(seen.delay_ms).unwrap_or(u32::MAX).to_le_bytes());
        let set = !seen.set_by.is_zero();
        let flags = [seen.warming, seen.degraded, seen.still, set];
        self.piece.push(flags.iter().enumerate().map(|(i, flag)| u8::from(*flag) << i).sum());
        if set {
            let nanoseconds = seen.set_by.as_nanos().clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64;
            self.piece.extend(nanoseconds.to_le_bytes());
        }
    }

    fn begin(&mut self, kind: u8) {
        self.piece.clear();
        self.piece.extend([0; 8]);
        self.piece.push(kind);
    }

    fn seal(&mut self) {
        let body = &self.piece[8..];
        let (length, crc) = ((body.len() as u32).to_le_bytes(), crc32fast::hash(body).to_le_bytes());
        self.piece[..4].copy_from_slice(&length);
        self.piece[4..8].copy_from_slice(&crc);
    }

    fn finish(&mut self) -> io::Result<()> {
        self.seal();
        self.append()
    }

    fn append(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        leave_room(self.path.parent().unwrap_or(Path::new(".")), self.piece.len())?;
        file.write_all(&self.piece)?;
        self.length += self.piece.len() as u64;
        Ok(())
    }
}

/// To the bit: what is not a number is not equal to itself.
fn same(a: &Scores, b: &Scores) -> bool {
    let bits = |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
    !b.fused.is_empty()
        && bits(&a.fused, &b.fused)
        && a.streams.len() == b.streams.len()
        && a.streams.iter().zip(&b.streams).all(|(a, b)| bits(a, b))
}

/// What was recorded, piece by piece.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    Camera(u16, CameraEntry),
    Engine(Engine),
    Hop { camera: u16, first_frame: u64, last_frame: u64, scores: Arc<Scores>, seen: Seen },
    Gap { camera: u16, lost: u64 },
    End { camera: u16, last_frame: u64, seen: Seen },
    Retuned(Decision),
}

/// The recording that `path` names: a file, or the only one in a folder.
///
/// Errors: `Config` when there is none or more than one.
pub fn find(path: &Path) -> Result<PathBuf> {
    let all = find_all(path)?;
    match all.as_slice() {
        [one] => Ok(one.clone()),
        _ => {
            let names: Vec<String> = all.iter().map(|p| p.display().to_string()).collect();
            Err(Error::config(format!("{} holds several runs; name one: {}", path.display(), names.join(", "))))
        }
    }
}

/// All recordings that `path` names, oldest first.
///
/// Errors: `Config` when there is none.
pub fn find_all(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path)
        .map_err(|e| Error::config(format!("cannot read the recording {}", path.display())).caused_by(e))?;
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "rec")).collect();
    found.sort();
    if found.is_empty() {
        return Err(Error::config(format!(
            "there is no recording in {}; `actiond run --record DIR` makes one",
            path.display()
        )));
    }
    Ok(found)
}

/// Reads a recording.
#[derive(Debug)]
pub struct Reader<R> {
    name: String,
    input: R,
    header: Header,
    offset: u64,
    body: Vec<u8>,
    /// Each camera's last scores.
    before: BTreeMap<u16, Arc<Scores>>,
}

impl Reader<BufReader<File>> {
    /// Errors: `Config` when it is no recording, or `Unavailable` when the disk fails.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| Error::config(format!("cannot open {name}")).caused_by(e))?;
        Reader::new(BufReader::with_capacity(1 << 16, file), name)
    }
}

impl<R: Read> Reader<R> {
    /// `name` is what errors call it.
    pub fn new(mut input: R, name: String) -> Result<Self> {
        let mut magic = [0; MAGIC.len()];
        if input.read_exact(&mut magic).is_err() || magic != MAGIC {
            return Err(Error::config(format!("{name} is no recording of scores, or one of another version")));
        }
        let mut reader = Reader {
            name,
            input,
            header: Header {
                actiond: String::new(),
                started: Timestamp::UNIX_EPOCH,
                device: String::new(),
                mode: Mode::Dense,
                hop: 0,
                fps: 0,
                lag: 0.0,
                manifest: String::new(),
                sha256: String::new(),
                labels: Vec::new(),
                events: Decision::default(),
            },
            offset: MAGIC.len() as u64,
            body: Vec::new(),
            before: BTreeMap::new(),
        };
        if !reader.read_body()? || reader.body[0] != HEADER {
            return Err(Error::config(format!("{} is cut off before anything was recorded", reader.name)));
        }
        let header: Header = serde_json::from_slice(&reader.body[1..]).map_err(|e| reader.damaged(&e.to_string()))?;
        if header.fps != crate::cadence::FPS || !(1..=crate::ring::WINDOW).contains(&header.hop) {
            return Err(reader.damaged(&format!("a hop of {} frames at {} fps", header.hop, header.fps)));
        }
        if !(0.0..=1024.0).contains(&header.lag) || header.labels.is_empty() {
            return Err(reader.damaged("its header makes no sense"));
        }
        reader.header = header;
        Ok(reader)
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next piece; `None` at the end, be it torn.
    ///
    /// Errors: `Config` when the recording is damaged.
    pub fn next_piece(&mut self) -> Result<Option<Piece>> {
        loop {
            if !self.read_body()? {
                return Ok(None);
            }
            let body = std::mem::take(&mut self.body);
            let piece = self.parse(&body);
            self.body = body;
            match piece {
                Some(Some(piece)) => return Ok(Some(piece)),
                // A kind of a later version, that says nothing that decisions need.
                Some(None) => {}
                None => return Err(self.damaged("a piece that makes no sense")),
            }
        }
    }

    fn damaged(&self, what: &str) -> Error {
        Error::config(format!("{} is damaged at byte {}: {what}", self.name, self.offset))
    }

    /// Reads a piece's body; false at the end.
    fn read_body(&mut self) -> Result<bool> {
        let mut start = [0; 8];
        let got = read_all(&mut self.input, &mut start).map_err(|e| self.cannot(e))?;
        if got == 0 {
            return Ok(false);
        }
        let number = |at: usize| u32::from_le_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]);
        let length = number(0) as usize;
        if got == start.len() && !(1..=LONGEST).contains(&length) {
            return Err(self.damaged(&format!("a piece of {length} bytes")));
        }
        self.body.clear();
        if got == start.len() {
            // Not resized first: a damaged length must not ask for memory that no file fills.
            let taken = (&mut self.input).take(length as u64).read_to_end(&mut self.body);
            taken.map_err(|e| self.cannot(e))?;
        }
        if got < start.len() || self.body.len() < length {
            log::warn!("{}: its last piece is torn, and left out; the rest is whole", self.name);
            return Ok(false);
        }
        if crc32fast::hash(&self.body) != number(4) {
            let mut rest = [0];
            // Blocks that a power cut left unwritten are at the end.
            if read_all(&mut self.input, &mut rest).map_err(|e| self.cannot(e))? == 0 {
                log::warn!("{}: its last piece is torn, and left out; the rest is whole", self.name);
                return Ok(false);
            }
            return Err(self.damaged("a wrong checksum"));
        }
        self.offset += (start.len() + length) as u64;
        Ok(true)
    }

    fn cannot(&self, e: io::Error) -> Error {
        Error::unavailable(format!("cannot read {}", self.name)).caused_by(e)
    }

    /// None: damaged; `Some(None)`: unknown.
    fn parse(&mut self, body: &[u8]) -> Option<Option<Piece>> {
        let mut rest = Bytes(body);
        Some(Some(match rest.u8()? {
            CAMERA => Piece::Camera(rest.u16()?, serde_json::from_slice(rest.0).ok()?),
            ENGINE => Piece::Engine(serde_json::from_slice(rest.0).ok()?),
            HOP => {
                let camera = rest.u16()?;
                let seen = rest.seen()?;
                let (first_frame, last_frame) = (rest.frame()?, rest.frame()?);
                let scores = match rest.u8()? {
                    SAME => self.before.get(&camera)?.clone(),
                    n => {
                        let labels = self.header.labels.len();
                        let fused = rest.scores(labels)?;
                        let stream = |_| match rest.u8()? {
                            0 => Some(Vec::new()),
                            1 => rest.scores(labels),
                            _ => None,
                        };
                        let streams = (0..n).map(stream).collect::<Option<_>>()?;
                        let scores = Arc::new(Scores { fused, streams });
                        self.before.insert(camera, scores.clone());
                        scores
                    }
                };
                Piece::Hop { camera, first_frame, last_frame, scores, seen }
            }
            GAP => Piece::Gap { camera: rest.u16()?, lost: rest.u64()? },
            END => {
                let camera = rest.u16()?;
                let seen = rest.seen()?;
                Piece::End { camera, last_frame: rest.frame()?, seen }
            }
            RETUNED => Piece::Retuned(serde_json::from_slice(rest.0).ok()?),
            _ => return Some(None),
        }))
    }
}

/// Fills `out` as far as there is something.
fn read_all(input: &mut impl Read, out: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < out.len() {
        match input.read(&mut out[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[b]| b)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn frame(&mut self) -> Option<u64> {
        self.u64().filter(|frame| *frame <= LAST_FRAME)
    }

    fn scores(&mut self, labels: usize) -> Option<Vec<f32>> {
        let (head, tail) = self.0.split_at_checked(labels.checked_mul(4)?)?;
        self.0 = tail;
        let scores = head.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        // Probabilities, but for rounding; what is none was never given, and an event with it would have no JSON.
        scores.map(|score| (0.0..=1.001).contains(&score).then_some(score)).collect()
    }

    fn seen(&mut self) -> Option<Seen> {
        let at = Timestamp::from_nanosecond(i128::from(self.take().map(i64::from_le_bytes)?)).ok()?;
        let delay_ms = u64::from(self.take().map(u32::from_le_bytes)?);
        let flags = self.u8()?;
        let set_by = match flags & 8 {
            0 => SignedDuration::ZERO,
            _ => SignedDuration::from_nanos(self.take().map(i64::from_le_bytes)?),
        };
        Some(Seen { at, set_by, delay_ms, warming: flags & 1 != 0, degraded: flags & 2 != 0, still: flags & 4 != 0 })
    }
}

/// What was replayed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replayed {
    pub cameras: usize,
    pub hops: u64,
    pub gaps: u64,
}

/// Decides a recording anew, with other `[events]` if some are given, else with those that held at each time, and tells
/// the events in the order of the run.
///
/// Errors: `Config` when the recording is damaged or `[events]` does not fit its model; what `tell` gives.
pub fn replay<R: Read>(
    reader: &mut Reader<R>,
    events: Option<&Decision>,
    tell: &mut dyn FnMut(&mut Event) -> Result<()>,
) -> Result<Replayed> {
    let header = reader.header().clone();
    let model = header.model()?;
    let about = About::new(&header.device, &model, header.mode, header.hop);
    let decider = |events: &Decision| Decider::new(&model, events, header.hop).map(|d| d.looking_back(header.lag));
    let mut now = decider(events.unwrap_or(&header.events))?;
    let mut tellers: BTreeMap<u16, Teller> = BTreeMap::new();
    let mut engine = Engine { backend: String::new(), precision: String::new() };
    let mut replayed = Replayed::default();
    while let Some(piece) = reader.next_piece()? {
        let (camera, given) = match &piece {
            Piece::Camera(number, entry) => {
                let teller = Teller::new(&entry.id, entry.epoch, now.clone(), header.labels.len());
                tellers.insert(*number, teller);
                continue;
            }
            Piece::Engine(taken) => {
                engine = taken.clone();
                continue;
            }
            Piece::Retuned(retuned) => {
                if events.is_none() {
                    now = decider(retuned)?;
                    tellers.values_mut().for_each(|teller| teller.retune(now.clone()));
                }
                continue;
            }
            Piece::Hop { camera, first_frame, last_frame, scores, seen } => {
                replayed.hops += 1;
                let hop = HopScores { first_frame: *first_frame, last_frame: *last_frame, scores };
                (camera, Given::Hop { hop, seen: *seen })
            }
            Piece::Gap { camera, lost } => {
                replayed.gaps += 1;
                (camera, Given::Gap { lost: *lost })
            }
            Piece::End { camera, last_frame, seen } => (camera, Given::End { last_frame: *last_frame, seen: *seen }),
        };
        let unknown = || Error::config(format!("{} is damaged: a hop of no camera", reader.name));
        tellers.get_mut(camera).ok_or_else(unknown)?.give(&about, &engine, &given, tell)?;
    }
    replayed.cameras = tellers.len();
    Ok(replayed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Model {
        Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default")).unwrap()
    }

    fn seen(n: i64) -> Seen {
        let at = Timestamp::from_nanosecond(1_795_000_000_123_456_789 + i128::from(n) * 320_000_000).unwrap();
        let set_by = SignedDuration::from_secs(if n > 9 { -3600 } else { 0 });
        Seen { at, set_by, delay_ms: 40 + n as u64, warming: n < 3, degraded: n == 5, still: n == 7 }
    }

    /// Records `hops` hops of two cameras, with a gap; gives the file's bytes and the events that were told meanwhile.
    fn recorded(folder: &Path, hops: u64) -> (PathBuf, Vec<Event>) {
        let model = model();
        let about = About::new("dock-3", &model, Mode::Window, 8);
        let events: Decision =
            config::parse_toml("start = 0.37\n[label.falling]\nstart = 0.1\nend = 0.05", "x").unwrap();
        let header = Header::new("dock-3", &model, Mode::Window, 8, 0.0, &events).unwrap();
        let entries = ["door", "yard"].map(|id| CameraEntry { id: id.into(), source: "usb:0".into(), epoch: None });
        let mut recorder = Recorder::create(folder, &header, &[], &[]).unwrap();
        recorder.cameras = entries.to_vec();
        recorder.told = vec![None; 2];
        let decider = Decider::new(&model, &events, 8).unwrap();
        let mut tellers = entries.each_ref().map(|e| Teller::new(&e.id, None, decider.clone(), model.labels.len()));
        let mut told = Vec::new();
        let mut give = |camera: usize, engine: &Engine, given: &Given| {
            recorder.given(Lane(camera), engine, given);
            let mut tell = |event: &mut Event| {
                told.push(event.clone());
                Ok(())
            };
            tellers[camera].give(&about, engine, given, &mut tell).unwrap();
        };
        let mut random = 7u64;
        let mut scores = Scores::default();
        for n in 0..hops {
            let backend = if n < hops / 2 { "openvino" } else { "tract" };
            let engine = Engine { backend: backend.into(), precision: "int8".into() };
            for camera in 0..2 {
                // Now and then a still picture, and a stream that is left out.
                if n % 5 != 4 {
                    let mut next = || {
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        (random >> 40) as f32 / (1u64 << 24) as f32
                    };
                    scores.fused = (0..model.labels.len()).map(|_| next()).collect();
                    scores.streams = vec![scores.fused.clone(), scores.fused.iter().map(|s| s / 3.0).collect()];
                    if n % 7 == 3 {
                        scores.streams[1].clear();
                    }
                }
                let hop = HopScores { first_frame: n * 8, last_frame: n * 8 + 63, scores: &scores };
                give(camera, &engine, &Given::Hop { hop, seen: seen(n as i64) });
                if n == 6 {
                    give(camera, &engine, &Given::Gap { lost: 40 });
                }
            }
        }
        for camera in 0..2 {
            let engine = Engine { backend: "tract".into(), precision: "int8".into() };
            give(camera, &engine, &Given::End { last_frame: hops * 8 + 55, seen: seen(99) });
        }
        (recorder.path().to_owned(), told)
    }

    fn replayed(bytes: &[u8], events: Option<&Decision>) -> Result<Vec<Event>> {
        let mut reader = Reader::new(bytes, "x.rec".into())?;
        let mut all = Vec::new();
        replay(&mut reader, events, &mut |event| {
            all.push(event.clone());
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn what_was_told_is_told_again_to_the_bit() {
        let folder = tempfile::tempdir().unwrap();
        let (path, told) = recorded(folder.path(), 60);
        assert!(told.len() > 100, "{}", told.len());
        let again = replayed(&fs::read(&path).unwrap(), None).unwrap();
        assert_eq!(again, told);
        let bits = |events: &[Event]| {
            events.iter().map(|e| (e.score.to_bits(), e.peak.to_bits(), e.start)).collect::<Vec<_>>()
        };
        assert_eq!(bits(&again), bits(&told));
        let other: Decision = config::parse_toml("start = 0.9\nend = 0.8", "x").unwrap();
        assert!(replayed(&fs::read(&path).unwrap(), Some(&other)).unwrap().len() < told.len());
        assert_eq!(find(folder.path()).unwrap(), path);
    }

    #[test]
    fn wherever_it_is_cut_off_what_is_before_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let (path, told) = recorded(folder.path(), 4);
        let bytes = fs::read(path).unwrap();
        let header = MAGIC.len() + 8 + u32::from_le_bytes(bytes[MAGIC.len()..][..4].try_into().unwrap()) as usize;
        let mut before = 0;
        for length in header..=bytes.len() {
            let events = replayed(&bytes[..length], None).unwrap();
            assert_eq!(events, told[..events.len()]);
            assert!(events.len() >= before);
            before = events.len();
        }
        assert_eq!(before, told.len());
        // Nor do zeros that a power cut has left behind it say anything.
        let zeros = [&bytes[..bytes.len() - 20], &[0; 20]].concat();
        let events = replayed(&zeros, None).unwrap();
        assert!(events.len() < told.len() && events == told[..events.len()]);
        for length in 0..header {
            assert!(replayed(&bytes[..length], None).is_err());
        }
    }

    #[test]
    fn no_flipped_byte_is_a_panic_or_another_event() {
        let folder = tempfile::tempdir().unwrap();
        let (path, told) = recorded(folder.path(), 2);
        let bytes = fs::read(path).unwrap();
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1 << (at % 8);
            if let Ok(events) = replayed(&other, None) {
                assert_eq!(events, told[..events.len()], "byte {at}");
            }
        }
    }

    #[test]
    fn a_score_that_is_no_probability_is_damage() {
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = recorded(folder.path(), 2);
        let bytes = fs::read(path).unwrap();
        let mut reader = Reader::new(&bytes[..], "x.rec".into()).unwrap();
        while !matches!(reader.next_piece().unwrap(), Some(Piece::Engine(_))) {}
        // The first hop: its length and checksum, kind, camera, seen, frames, streams, and there are its scores.
        let hop = reader.offset as usize;
        let length = u32::from_le_bytes(bytes[hop..hop + 4].try_into().unwrap()) as usize;
        for score in [f32::NAN, f32::INFINITY, -0.5, 3e38] {
            let mut bytes = bytes.clone();
            bytes[hop + 41..hop + 45].copy_from_slice(&score.to_le_bytes());
            let sum = crc32fast::hash(&bytes[hop + 8..hop + 8 + length]).to_le_bytes();
            bytes[hop + 4..hop + 8].copy_from_slice(&sum);
            let e = replayed(&bytes, None).unwrap_err();
            assert!(e.exit_code() == 2 && e.to_string().contains("makes no sense"), "{score}: {e}");
        }
    }

    /// What the fuzzer starts from: `cargo test --release --lib seeds_for -- --ignored` writes it anew.
    #[test]
    #[ignore = "writes fuzz/seeds/replay"]
    fn seeds_for_the_fuzzer_are_written() {
        let to = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/replay");
        fs::create_dir_all(&to).unwrap();
        for (name, hops) in [("one", 1), ("many", 9)] {
            let folder = tempfile::tempdir().unwrap();
            let (path, told) = recorded(folder.path(), hops);
            assert!(!told.is_empty() || hops == 1);
            fs::copy(path, to.join(format!("{name}.rec"))).unwrap();
        }
    }

    #[test]
    fn a_folder_of_several_runs_asks_which() {
        let folder = tempfile::tempdir().unwrap();
        assert!(find(folder.path()).unwrap_err().to_string().contains("--record"));
        recorded(folder.path(), 1);
        recorded(folder.path(), 1);
        assert_eq!(find_all(folder.path()).unwrap().len(), 2);
        assert!(find(folder.path()).unwrap_err().to_string().contains("name one"));
    }
}
