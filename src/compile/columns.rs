//! The arithmetic of columns: which of a tensor's columns a hop must compute, and which it has from the hops before.
//!
//! Every tensor's columns are numbered from the window's first frame, so that a tensor of step S (S frames from one
//! column to the next) has its column `frames / S`, its *base*, where the window's end is. When the window moves on by a
//! hop, the number of every column falls by `hop / S`.
//!
//! ```text
//!    0      left                          base - fresh - delay       base - delay    base + extra
//!    |-------|-------------------------------------|--------------------|---------------|
//!     touched                 kept                        fresh             touched
//!     by the window's         from the                    complete          by the window's end:
//!     beginning               hops before                 for the first     computed again in
//!                                                         time              the next hop
//! ```

use super::{
    Mode,
    dense::{Dense, Rule, Slide},
};
use crate::error::{Error, Result};

/// What a hop knows of one tensor's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Columns {
    /// Frames from one column to the next.
    pub step: i64,
    /// Columns of the window beyond `frames / step`: negative behind a convolution without padding.
    pub extra: i64,
    /// How many columns before the base the first one lies that needs frames which have not come yet, or padding for them.
    pub delay: i64,
    /// Columns that are touched by the padding before the window's first frame.
    pub left: i64,
    /// Frames before its own place (column * step) that a column reaches back.
    pub reach: i64,
    /// Computed whole at each hop: nothing can be kept.
    pub whole: bool,
    /// Columns in the dense window.
    pub count: i64,
    pub base: i64,
    /// New columns a hop.
    pub fresh: i64,
}

impl Columns {
    /// Where the fresh columns begin.
    pub fn fresh_from(&self) -> i64 {
        self.base - self.fresh - self.delay
    }

    /// Where the columns end that are computed in a hop.
    pub fn end(&self, mode: Mode) -> i64 {
        if mode == Mode::Continuous { self.base - self.delay } else { self.base + self.extra }
    }
}

/// What a hop knows of every tensor.
pub(super) fn columns(dense: &Dense, mode: Mode, frames: i64, hop: i64) -> Result<Vec<Columns>> {
    let mut all: Vec<Columns> = Vec::with_capacity(dense.tensors.len());
    let settle = |mut c: Columns, count: i64| -> Columns {
        c.count = count;
        c.base = frames / c.step;
        c.fresh = hop / c.step;
        c
    };
    let input = Columns { step: 1, extra: 0, delay: 0, left: 0, reach: 0, whole: false, count: 0, base: 0, fresh: 0 };
    // Strides first: a hop that fits none of them is told of before anything else.
    let stride = total_stride(dense);
    if stride < 1 || hop % stride != 0 || frames % stride != 0 {
        let next = div_ceil(hop.max(1), stride.max(1)) * stride.max(1);
        return Err(if frames % stride.max(1) != 0 {
            Error::model(format!(
                "its {frames} frames are no multiple of its total stride in time, {stride}: the window's columns do not \
                 fall on those of the window before; use mode dense"
            ))
        } else {
            Error::config(format!(
                "a hop of {hop} can't be reused: the network's strides in time multiply to {stride}, so a hop must be a \
                 multiple of that; the next one is {next} (--hop {next})"
            ))
        });
    }
    all.push(settle(input, dense.tensors[dense.input].columns()));
    let mut origin = vec![None; dense.tensors.len()];
    for (number, node) in dense.nodes.iter().enumerate() {
        let inputs = || node.inputs.iter().flatten().map(|&id| all[id]);
        let Some(first) = inputs().next() else { continue };
        let made = match node.rule {
            Rule::Timeless | Rule::Close { .. } => continue,
            Rule::Pointwise => {
                if inputs().any(|c| (c.step, c.extra) != (first.step, first.extra)) {
                    return Err(Error::model(format!(
                        "node `{}` ({}) joins tensors whose columns are not of the same moments",
                        node.proto.name, node.proto.op_type
                    )));
                }
                Columns {
                    delay: inputs().map(|c| c.delay).max().unwrap_or(0),
                    left: inputs().map(|c| c.left).max().unwrap_or(0),
                    reach: inputs().map(|c| c.reach).max().unwrap_or(0),
                    ..first
                }
            }
            Rule::Slide(Slide { kernel, stride, front, back, .. }) => Columns {
                step: first.step * stride,
                extra: (first.extra + front + back - kernel).div_euclid(stride) + 1,
                delay: div_ceil(first.delay + kernel - stride - front, stride),
                left: match div_ceil(first.left + front, stride).max(0) {
                    0 => 0,
                    // What is computed apart has at least one column that is not padding to be computed from.
                    left => left.max((front - kernel).div_euclid(stride) + 2),
                },
                reach: first.reach + front * first.step,
                ..first
            },
        };
        for &id in &node.outputs {
            debug_assert_eq!(id, all.len());
            origin[id] = Some(number);
            all.push(settle(made, dense.tensors[id].columns()));
        }
    }
    defer(dense, mode, &mut all, &origin);
    if mode == Mode::Window {
        for node in &dense.nodes {
            let from_whole = node.inputs.iter().flatten().any(|&id| all[id].whole);
            for &id in &node.outputs {
                all[id].whole = from_whole || all[id].fresh_from() <= all[id].left;
            }
        }
    }
    Ok(all)
}

/// Frames from one column of the last tensor to the next: the product of the strides along the deepest path.
pub(super) fn total_stride(dense: &Dense) -> i64 {
    let mut steps = vec![1i64; dense.tensors.len()];
    let mut total = 1;
    for node in &dense.nodes {
        let Some(&first) = node.inputs.iter().flatten().next() else { continue };
        let stride = if let Rule::Slide(slide) = node.rule { slide.stride } else { 1 };
        for &id in &node.outputs {
            steps[id] = steps[first].saturating_mul(stride);
            total = total.max(steps[id]);
        }
    }
    total
}

/// Lets a tensor wait for the branches that it is joined with: where everything that reads it wants its columns later, it
/// is computed later, from inputs that are kept anyway, instead of being kept itself.
fn defer(dense: &Dense, mode: Mode, all: &mut [Columns], origin: &[Option<usize>]) {
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); all.len()];
    for (number, node) in dense.nodes.iter().enumerate() {
        for &id in node.inputs.iter().flatten() {
            readers[id].push(number);
        }
    }
    for id in (0..all.len()).rev().filter(|&id| id != dense.input) {
        let Some(maker) = origin[id] else { continue };
        // In window and carried mode what is touched by an edge is computed at each hop, so that more of it costs: only
        // where it is cheap, at operators without a reach in time.
        if dense.nodes[maker].rule != Rule::Pointwise && mode != Mode::Continuous {
            continue;
        }
        let wish = |number: &usize| match dense.nodes[*number].rule {
            Rule::Pointwise => dense.nodes[*number].outputs.first().map(|&out| (all[out].delay, all[out].left)),
            _ => Some((all[id].delay, all[id].left)),
        };
        let wishes: Vec<(i64, i64)> = readers[id].iter().filter_map(wish).collect();
        let (delay, left) = (wishes.iter().map(|w| w.0).min(), wishes.iter().map(|w| w.1).min());
        // All outputs of a node keep one pace.
        if dense.nodes[maker].outputs.len() == 1 {
            all[id].delay = all[id].delay.max(delay.unwrap_or(0));
            all[id].left = all[id].left.max(left.unwrap_or(0));
        }
    }
}

pub(super) fn div_ceil(a: i64, b: i64) -> i64 {
    -(-a).div_euclid(b)
}

/// The frames that must have gone in before `columns` of this tensor at the end of a hop hold nothing from before the
/// beginning.
pub(super) fn warm_after(c: &Columns, columns: i64, mode: Mode) -> i64 {
    let end = if mode == Mode::Continuous { -c.delay } else { c.extra };
    (columns - end) * c.step + c.reach
}

/// Where the columns lie that a node's output columns `from..to` are made of: without regard to the ends.
pub(super) fn needed(slide: &Slide, from: i64, to: i64) -> (i64, i64) {
    (from * slide.stride - slide.front, (to - 1) * slide.stride - slide.front + slide.kernel)
}
