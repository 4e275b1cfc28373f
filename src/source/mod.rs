//! Where pictures come from. A source opens, gives pictures until it fails or ends, and is dropped; opening it again
//! after a failure is the camera thread's task, not the source's.

pub mod gstreamer;
pub mod nokhwa;
pub mod replay;

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    error::{Error, Result},
    frame::Picture,
    time::Shutdown,
};

/// Whether pictures wait for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// A camera: pictures come when they come, the newest wins, what was not fetched in time is dropped and counted.
    Live,
    /// A recording: the decoder waits, nothing is dropped.
    Recorded,
}

/// A stream of pictures, opened.
pub trait Source: Send {
    /// Blocks until the next picture is there.
    ///
    /// Errors: `EndOfStream` when a recording has ended, or the far end of a stream has said that it is over (asking
    /// again gives the same); `Unavailable` when the far end is gone or silent for too long (open it anew, later);
    /// `Config` when it will never work (not a video, no such file).
    fn next(&mut self) -> Result<Picture<'_>>;

    fn pace(&self) -> Pace;
}

/// How long a source that waits for a picture does so before it looks whether it should stop.
const STOP_LOOK: Duration = Duration::from_millis(100);

/// How a source is to be played, whatever it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Plays a recording at its own pace as if it were a camera: the newest picture wins, drops are counted.
    pub realtime: bool,
    pub rtsp_transport: RtspTransport,
    /// How long a source may give no picture before it counts as gone.
    pub stall: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options { realtime: false, rtsp_transport: RtspTransport::Tcp, stall: Duration::from_secs(10) }
    }
}

/// How an RTSP camera's pictures travel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RtspTransport {
    /// Inside the RTSP connection: nothing is lost, and it passes every firewall that RTSP passes.
    #[default]
    Tcp,
    /// In packets of its own: no waiting for what was lost, so pictures can be torn.
    Udp,
}

/// The address of a source, as it is typed in a config or behind `--source`.
#[derive(Clone, PartialEq, Eq)]
pub enum Uri {
    /// `rtsp://` or `rtsps://`, whole.
    Rtsp(String),
    /// `http://` or `https://`, whole: an MJPEG camera, an HLS stream, a file on a server.
    Http(String),
    /// `usb:0` or `usb:/dev/video0`: the device's path.
    Usb(PathBuf),
    /// `csi:0`: the sensor's number.
    Csi(u32),
    /// Anything that GStreamer reads as a file.
    File(PathBuf),
    /// A folder of pictures, a y4m file, or a GIF.
    Replay(PathBuf),
    /// A GStreamer pipeline that ends in raw video.
    Gst(String),
}

const KNOWN: &str = "rtsp://, rtsps://, http://, https://, usb:0, usb:/dev/video0, csi:0, file:PATH, replay:PATH, \
                     gst:PIPELINE, or the path of a file or folder";

impl Uri {
    /// Reads an address. Whether what it names is there is seen when it is opened.
    pub fn parse(text: &str) -> Result<Uri> {
        let text = text.trim();
        let unknown = |what: String| Err(Error::config(format!("{what}; a source is one of {KNOWN}")));
        if text.is_empty() {
            return unknown("the source is empty".into());
        }
        // A bare path may hold a colon, but not before its first slash; what looks like a scheme is taken for one.
        let scheme = text
            .split_once(':')
            .filter(|(s, _)| s.len() > 1 && s.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)));
        let Some((scheme, rest)) = scheme else { return Ok(Uri::from_path(Path::new(text))) };
        match scheme.to_ascii_lowercase().as_str() {
            "rtsp" | "rtsps" | "rtspt" | "rtspu" if host(rest).is_some() => Ok(Uri::Rtsp(text.into())),
            "http" | "https" if host(rest).is_some() => Ok(Uri::Http(text.into())),
            "rtsp" | "rtsps" | "http" | "https" => {
                unknown(format!("{} has no host: it should look like {scheme}://10.0.0.5/stream", redact(text)))
            }
            "usb" => match rest.parse::<u32>() {
                Ok(number) => Ok(Uri::Usb(format!("/dev/video{number}").into())),
                Err(_) if rest.starts_with('/') => Ok(Uri::Usb(rest.into())),
                Err(_) => unknown(format!("{text} names no camera: write usb:0 or usb:/dev/video0")),
            },
            "csi" => match rest.parse() {
                Ok(number) => Ok(Uri::Csi(number)),
                Err(_) => unknown(format!("{text} names no sensor: write csi:0")),
            },
            "file" | "replay" if rest.trim_start_matches('/').is_empty() => unknown(format!("{text} has no path")),
            "file" => {
                // `file:///a%20b.mp4` is the form that browsers write; `file:a b.mp4` is ours.
                let path = match rest.strip_prefix("//") {
                    Some(absolute) => percent_decoded(absolute.strip_prefix("localhost").unwrap_or(absolute)),
                    None => rest.into(),
                };
                Ok(Uri::from_path(Path::new(&path)))
            }
            "replay" => Ok(Uri::Replay(rest.into())),
            "gst" if !rest.trim().is_empty() => Ok(Uri::Gst(rest.trim().into())),
            "gst" => unknown("gst: has no pipeline behind it".into()),
            // A file may have a colon in its name; it is one if it is there.
            _ if Path::new(text).exists() => Ok(Uri::from_path(Path::new(text))),
            // Not the text: what is no address may still hold a password.
            _ => unknown(format!("the source has an unknown scheme, {scheme}:")),
        }
    }

    /// Folders, y4m files and GIFs are read in pure Rust, everything else by GStreamer.
    fn from_path(path: &Path) -> Uri {
        let ours = ["y4m", "gif"].iter().any(|ours| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ours)));
        if ours || path.is_dir() { Uri::Replay(path.into()) } else { Uri::File(path.into()) }
    }

    /// The address of a file or folder.
    pub fn file(path: &Path) -> Uri {
        Uri::from_path(path)
    }

    /// Where a recording lies; none for what is not a file or folder.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Uri::File(path) | Uri::Replay(path) => Some(path),
            _ => None,
        }
    }

    /// The same address with a recording's relative path starting from `folder`.
    pub fn relative_to(self, folder: &Path) -> Uri {
        match self {
            Uri::File(path) => Uri::File(folder.join(path)),
            Uri::Replay(path) => Uri::Replay(folder.join(path)),
            // What is a folder from here need not be one from there.
            other => other,
        }
    }

    /// A camera's id where its user gave none: the file's name, the host, or what kind of camera it is.
    pub fn short_name(&self) -> String {
        let name = match self {
            Uri::File(path) | Uri::Replay(path) => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            Uri::Rtsp(uri) | Uri::Http(uri) => {
                let rest = uri.split_once(':').map_or("", |(_, rest)| rest);
                host(rest).unwrap_or("camera").split(':').next().unwrap_or("camera").to_owned()
            }
            Uri::Usb(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            Uri::Csi(number) => format!("csi{number}"),
            Uri::Gst(_) => "pipeline".into(),
        };
        let name = name.replace(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c), "-");
        if name.is_empty() { "camera".into() } else { name.chars().take(40).collect() }
    }
}

/// The host of `//user:password@host:port/path`, if there is one.
fn host(rest: &str) -> Option<&str> {
    let authority = rest.strip_prefix("//")?.split(['/', '?', '#']).next()?;
    let host = authority.rsplit('@').next()?;
    (!host.is_empty() && !host.starts_with(':')).then_some(host)
}

pub(crate) fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = (bytes[i] == b'%').then(|| text.get(i + 1..i + 3)).flatten();
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.into())
}

/// Takes the passwords out of a text that may hold addresses (`rtsp://user:secret@host`) or a pipeline
/// (`user-pw=secret`): logs and events are read by more people than configs are.
pub fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    // With one slash it is a slip, and what is behind it a password all the same.
    while let Some(at) = rest.find(":/") {
        let slashes = rest[at + 1..].chars().take_while(|c| *c == '/').count().min(2);
        let (head, tail) = rest.split_at(at + 1 + slashes);
        out.push_str(head);
        let until = |end: fn(char) -> bool| &tail[..tail.find(end).unwrap_or(tail.len())];
        let word = until(|c| c.is_whitespace() || "\"'<>".contains(c));
        // A password may hold an @ of its own: the last one before the path ends it.
        let mut authority = &word[..word.find('/').unwrap_or(word.len())];
        // It may hold a / as well, though that should be written %2F: no port is made of letters.
        let port = authority.rsplit_once(':').filter(|_| !authority.contains('@')).map(|(_, port)| port);
        if port.is_some_and(|port| !port.ends_with(']') && !port.chars().all(|c| c.is_ascii_digit())) {
            authority = word;
        }
        rest = tail;
        if let Some((login, _)) = authority.rsplit_once('@') {
            out.push_str(login.split(':').next().unwrap_or_default());
            if login.contains(':') {
                out.push_str(":***");
            }
            rest = &tail[login.len()..];
        }
    }
    out.push_str(rest);
    // Some cameras take it in the path or behind the `?`.
    let keys = [
        "user-pw=",
        "proxy-pw=",
        "password=",
        "passwd=",
        "pwd=",
        "pass=",
        "loginpas=",
        "passphrase=",
        "token=",
        "auth=",
        "secret=",
        "apikey=",
        "api_key=",
    ];
    for key in keys {
        let mut from = 0;
        // Letters of other scripts keep their places.
        while let Some(at) = out[from..].to_ascii_lowercase().find(key).map(|i| from + i + key.len()) {
            let value = &out[at..];
            let end = match value.chars().next() {
                Some(quote @ ('"' | '\'')) => value[1..].find(quote).map_or(value.len(), |i| i + 2),
                _ => value.find(|c: char| c.is_whitespace() || "&\"'".contains(c)).unwrap_or(value.len()),
            };
            out.replace_range(at..at + end, "***");
            from = at + 3;
        }
    }
    out
}

impl fmt::Display for Uri {
    /// As it is typed, but with `***` in place of a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Uri::Rtsp(uri) | Uri::Http(uri) => f.write_str(&redact(uri)),
            Uri::Usb(path) => write!(f, "usb:{}", path.display()),
            Uri::Csi(number) => write!(f, "csi:{number}"),
            Uri::File(path) => write!(f, "{}", path.display()),
            Uri::Replay(path) => write!(f, "{}", path.display()),
            Uri::Gst(pipeline) => write!(f, "gst:{}", redact(pipeline)),
        }
    }
}

// By hand, since a derived one would print the password.
impl fmt::Debug for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uri({self})")
    }
}

/// Opens a source.
///
/// Errors: as in [`Source::next`]. What only shows in the stream itself (a text file that is named .mp4, a camera that
/// does not answer) comes from the first `next`, so that opening never waits for a network.
///
/// Once `stop` is set, a live source that has nothing to show waits no longer and ends.
pub fn open(uri: &Uri, options: &Options, stop: &Shutdown) -> Result<Box<dyn Source>> {
    Ok(match uri {
        Uri::Usb(path) => Box::new(nokhwa::Camera::open(path, options, stop)?),
        Uri::Replay(path) => Box::new(replay::Replay::open(path, options)?),
        // By what they hold and not by their names: GStreamer shows a GIF's first picture for ever.
        Uri::File(path) if replay::plays(path) => Box::new(replay::Replay::open(path, options)?),
        Uri::Rtsp(_) | Uri::Http(_) | Uri::Csi(_) | Uri::File(_) | Uri::Gst(_) => {
            Box::new(gstreamer::Stream::open(uri, options, stop)?)
        }
    })
}

/// A `Config` error for a path that is not there, is empty, or can't be read; `None` when it is fine.
fn unreadable(path: &Path) -> Option<Error> {
    let name = path.display();
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Some(Error::config(format!("{name} does not exist: check the path of the source")))
        }
        Err(e) => Some(Error::config(format!("{name} can't be opened")).caused_by(e)),
        Ok(found) if found.is_file() && found.len() == 0 => {
            Some(Error::config(format!("{name} is empty (0 bytes): copy or record it again")))
        }
        Ok(found) if found.is_file() => std::fs::File::open(path).err().map(|e| {
            Error::config(format!("{name} can't be read: give the user that actiond runs as the right to")).caused_by(e)
        }),
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn parse(text: &str) -> Uri {
        Uri::parse(text).unwrap()
    }

    #[test]
    fn every_form_of_an_address_is_understood() {
        assert_eq!(parse("rtsp://10.0.0.5/s"), Uri::Rtsp("rtsp://10.0.0.5/s".into()));
        assert_eq!(parse("RTSPS://u:p@h:322/s"), Uri::Rtsp("RTSPS://u:p@h:322/s".into()));
        assert_eq!(parse("http://cam/mjpeg"), Uri::Http("http://cam/mjpeg".into()));
        assert_eq!(parse("usb:1"), Uri::Usb("/dev/video1".into()));
        assert_eq!(parse("usb:/dev/v4l/by-id/x"), Uri::Usb("/dev/v4l/by-id/x".into()));
        assert_eq!(parse("csi:0"), Uri::Csi(0));
        assert_eq!(parse("file:a b.mp4"), Uri::File("a b.mp4".into()));
        assert_eq!(parse("file:///a%20b.mp4"), Uri::File("/a b.mp4".into()));
        assert_eq!(parse("clip.mp4"), Uri::File("clip.mp4".into()));
        assert_eq!(parse("./odd:name.mp4"), Uri::File("./odd:name.mp4".into()));
        assert_eq!(parse("clip.Y4M"), Uri::Replay("clip.Y4M".into()));
        assert_eq!(parse("file:clip.y4m"), Uri::Replay("clip.y4m".into()));
        assert_eq!(parse("/tmp"), Uri::Replay("/tmp".into()));
        assert_eq!(parse("replay:x"), Uri::Replay("x".into()));
        assert_eq!(parse("gst: videotestsrc ! identity"), Uri::Gst("videotestsrc ! identity".into()));
    }

    #[test]
    fn what_is_not_an_address_is_refused_with_the_list_of_what_is() {
        for text in [
            "",
            "  ",
            "ftp://h/x",
            "rtsp:/h",
            "rtsp://",
            "rtsp://u:p@/x",
            "usb:",
            "usb:front",
            "csi:a",
            "gst:",
            "file:",
            "replay:",
        ] {
            let error = Uri::parse(text).unwrap_err();
            assert_eq!(error.kind(), Kind::Config, "{text}");
            assert!(error.to_string().contains("rtsp://, rtsps://"), "{text}: {error}");
        }
        let error = Uri::parse("rtsp:/u:hunter2@h").unwrap_err().to_string();
        assert!(error.contains("should look like rtsp://10.0.0.5/stream"), "{error}");
    }

    #[test]
    fn no_password_is_ever_shown() {
        for (text, shown) in [
            ("rtsp://user:hunter2@host:554/s?x=1", "rtsp://user:***@host:554/s?x=1"),
            ("rtsp://user:hunt@er2@host/s", "rtsp://user:***@host/s"),
            ("rtsp://user@host/s", "rtsp://user@host/s"),
            ("rtsp://host/a@b:c", "rtsp://host/a@b:c"),
            ("rtsp://host:554/a@b", "rtsp://host:554/a@b"),
            ("rtsp://user:hunt/er2@host/s", "rtsp://user:***@host/s"),
            ("http://host/cgi?usr=admin&pwd=hunter2&x=1", "http://host/cgi?usr=admin&pwd=***&x=1"),
            ("http://host/cgi?Password=hunter2&é=1", "http://host/cgi?Password=***&é=1"),
            ("http://host/snap.cgi?loginuse=u&loginpas=hunter2", "http://host/snap.cgi?loginuse=u&loginpas=***"),
            ("rtsp://host/user=admin_password=hunter2_channel=1", "rtsp://host/user=admin_password=***"),
            (
                "gst:rtspsrc location=rtsp://u:hunter2@h user-pw=hunter2 ! x",
                "gst:rtspsrc location=rtsp://u:***@h user-pw=*** ! x",
            ),
            ("gst:rtspsrc user-pw=\"hunter2 hunter2\" ! x", "gst:rtspsrc user-pw=*** ! x"),
        ] {
            assert_eq!(parse(text).to_string(), shown);
            assert!(!format!("{:?}", parse(text)).contains("hunt"));
        }
        assert_eq!(
            redact("rtsp:/u:hunter2@h/x is wrong, file:///a/b is not"),
            "rtsp:/u:***@h/x is wrong, file:///a/b is not"
        );
        assert!(!Uri::parse("admin:hunter2@10.0.0.5/s").unwrap_err().to_string().contains("hunter2"));
        assert!(!Uri::parse("ftp://u:hunter2@h").unwrap_err().to_string().contains("hunter2"));
    }

    #[test]
    fn a_source_without_an_id_gets_one_that_topics_and_files_can_bear() {
        for (text, name) in [
            ("rtsp://user:pw@10.0.0.5:554/s", "10.0.0.5"),
            ("clips/front door.mp4", "front-door"),
            ("usb:1", "video1"),
            ("csi:0", "csi0"),
            ("gst:videotestsrc", "pipeline"),
        ] {
            assert_eq!(parse(text).short_name(), name);
        }
    }

    #[test]
    fn recordings_of_a_config_lie_beside_it() {
        assert_eq!(parse("a.mp4").relative_to(Path::new("/etc/x")), Uri::File("/etc/x/a.mp4".into()));
        assert_eq!(parse("/b.mp4").relative_to(Path::new("/etc/x")), Uri::File("/b.mp4".into()));
        assert_eq!(parse("usb:0").relative_to(Path::new("/etc/x")), Uri::Usb("/dev/video0".into()));
    }

    #[test]
    fn broken_percent_signs_stay_as_they_are() {
        assert_eq!(percent_decoded("100%"), "100%");
        assert_eq!(percent_decoded("a%2"), "a%2");
        assert_eq!(percent_decoded("%zz%c3%bc"), "%zzü");
        assert_eq!(percent_decoded("%é"), "%é");
    }
}
