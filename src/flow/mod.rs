//! Dense optical flow between two pictures, once a pair.

pub mod cpu;

use crate::error::Result;

/// An estimator of dense optical flow that holds its own scratch memory.
pub trait Flow: Send {
    /// Flow from `prev` to `next`, both 8-bit luma of the size the estimator was made for, row by row without padding:
    /// for each pixel of `prev` how far (dx, dy) it has moved in `next`, in pixels, interleaved into `out`
    /// (height x width x 2).
    ///
    /// Called once for each pair of distinct pictures. An error is a fault of the library or the device, and not of
    /// the pictures: flow of any two pictures is defined.
    fn step(&mut self, prev: &[u8], next: &[u8], out: &mut [f32]) -> Result<()>;
}
