//! What flows: a [`Picture`] as a source gives it (native size, borrowed), and a [`Frame`] as the streams take it
//! (model-sized, owned by the ring, numbered by its 25 fps tick).

use std::time::Duration;

/// One plane of 8-bit samples; `stride` bytes from the start of a row to the next.
#[derive(Debug, Clone, Copy)]
pub struct Plane<'a> {
    pub data: &'a [u8],
    pub stride: usize,
}

/// Which matrix turns YCbCr into RGB (ITU-R BT.601 for small pictures, BT.709 for HD, unless the stream says).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matrix {
    Bt601,
    Bt709,
}

/// The samples of a picture in the layouts that sources deliver without converting them.
#[derive(Debug, Clone, Copy)]
pub enum Pixels<'a> {
    /// Planar 4:2:0; the chroma planes are `(width + 1) / 2` by `(height + 1) / 2`.
    I420 { y: Plane<'a>, u: Plane<'a>, v: Plane<'a>, matrix: Matrix, full_range: bool },
    /// Packed, three bytes a pixel, R first.
    Rgb(Plane<'a>),
}

/// A picture as it left the source; valid until the source is asked for the next one.
#[derive(Debug, Clone, Copy)]
pub struct Picture<'a> {
    pub width: usize,
    pub height: usize,
    /// The source's own time of this picture: from the first picture on for a recording, from the start of
    /// the stream for a camera. Never decreases within one connection.
    pub time: Duration,
    /// Pictures that the source had to drop between the one before and this one (newest wins).
    pub dropped: u64,
    pub pixels: Pixels<'a>,
}

/// What the streams see of one tick, once for each different view (size and fit) that the model's streams ask for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Frame {
    /// The tick's number since the camera began: ticks are 1/25 s apart.
    pub number: u64,
    /// Frames in a row, up to this one, in which nothing has moved; 0 where something does, or where nobody looks
    /// (`skip_still` is off).
    pub still: u64,
    pub views: Vec<View>,
}

/// One tick at one size.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    /// Height x width x 3, R first; empty where no stream takes RGB at this size.
    pub rgb: Vec<u8>,
    /// Height x width x 2 (dx, dy) in pixels of this view per 1/25 s, from the tick before to this one, not yet
    /// clipped; empty where no stream takes flow at this size.
    pub flow: Vec<f32>,
}
