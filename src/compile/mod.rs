//! The window compiler: a dense graph over a window of frames becomes one that computes, at each hop, only what is new.
//!
//! A 3D ConvNet over a sliding window computes nearly everything again at each hop. Here every node is given the columns
//! (indices of the time axis) that a hop brings, and what it needs of earlier ones comes in as *states*: outputs of the
//! hop before. The result is an ordinary ONNX graph with more inputs and outputs, which any backend runs.
//!
//! | mode | what a hop's scores are | what is computed |
//! | --- | --- | --- |
//! | [`Mode::Window`] | those of the dense window, number for number | columns of new frames, and those that the padding at the window's two ends touches |
//! | [`Mode::Carried`] | those of one dense run over everything since the beginning, cut off now | columns of new frames, and those that the padding behind the last frame touches |
//! | [`Mode::Continuous`] | the mean of the last columns of one dense run without an end, as the paper tests whole videos | columns that are complete for the first time |
//!
//! In carried and continuous mode the past is the real one, so that a window's padding in front is gone; a state is zero
//! before the first hop, and what it says is out of reach after [`Program::warm_after`] frames. In window mode the first
//! hop, and each one behind a cut, runs [`Program::prime`]: the dense graph, which gives the states as well.
//!
//! Rooms: [`dense`](self) reads a graph and knows for each operator how columns depend on columns; `columns` is the
//! arithmetic of what is fresh, kept and touched; `write` puts the new graph together; `pack` makes the first step cheap.

mod columns;
mod dense;
mod pack;
mod write;

#[cfg(test)]
mod tests;

use tract_onnx::pb::tensor_proto::DataType;

use crate::{
    config::Mode,
    error::{Error, Result},
};
use write::{Kept, Kind};

/// What is compiled, and how.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The dense graph, an ONNX file.
    pub graph: &'a [u8],
    /// Its input, with the window's shape.
    pub input: &'a str,
    pub shape: Vec<usize>,
    /// Which of the input's axes is time.
    pub axis: usize,
    pub output: &'a str,
    pub mode: Mode,
    /// Columns of the input from one hop to the next.
    pub hop: usize,
    /// How many of the last columns are averaged in continuous mode; as many as the window has where it is left out.
    pub columns: Option<usize>,
}

impl Request<'_> {
    fn input(&self) -> dense::Input<'_> {
        dense::Input {
            name: self.input,
            shape: self.shape.clone(),
            axis: self.axis,
            output: self.output,
            closing: None,
        }
    }
}

/// A graph for one hop.
#[derive(Debug, Clone)]
pub struct Program {
    /// ONNX: the input's last [`Program::frames`] columns and the states in, logits and the next states out.
    pub graph: Vec<u8>,
    /// In window mode, ONNX: the window in, logits and the first states out.
    pub prime: Option<Vec<u8>>,
    /// Columns of the input that a hop takes, the newest last: the fresh ones, and what the first convolution reaches
    /// back to. In window mode the whole window.
    pub frames: usize,
    /// The input's shape for the window: the request's, unless it is packed.
    pub shape: Vec<usize>,
    pub packed: Option<Packed>,
    pub states: Vec<State>,
    /// Columns that must have gone in before a score depends on nothing from before the beginning; 0 in window mode.
    pub warm_after: usize,
    /// Columns of logits that a score is made of.
    pub used: usize,
    /// How many input columns later than the dense window's scores these are: they look at a place further back.
    pub lag: f32,
    /// Multiply-adds of the dense window, and of a hop.
    pub macs_dense: u64,
    pub macs: u64,
}

impl Program {
    /// What a camera's states take.
    pub fn state_bytes(&self) -> usize {
        let of = |s: &State| s.shape.iter().product::<usize>() * if s.dtype == DataType::Float as i32 { 4 } else { 1 };
        self.states.iter().map(of).sum()
    }
}

/// The dense graph over `frames` columns of input whose score a hop's of this program must be, once that many have gone
/// in: what the mode stands for, computed plainly. In window mode that is the window.
pub fn reference(request: &Request, program: &Program, frames: usize) -> Result<Vec<u8>> {
    let mut input = request.input();
    // What ends time does so at the window's length.
    input.closing = Some(dense::closing(&dense::read(dense::decode(request.graph)?, &input)?));
    input.shape[request.axis] = frames;
    let dense = dense::read(dense::decode(request.graph)?, &input)?;
    let columns = columns::columns(&dense, request.mode, frames as i64, request.hop as i64)?;
    let k = Some(program.used as i64);
    let (written, _) = write::write(&dense, &columns, request.mode, k, Kind::Reference, &Kept::new())?;
    Ok(write::encode(&written.model))
}

/// How a graph takes its input that would quantize it first: as i8, each value divided by `scale` and rounded to the
/// nearest (of two, the even one), and squares of pixels as channels: the input [1, C, T, H, W] becomes
/// [1, block area * C, T, H / block, W / block], where the channel of pixel (y, x) is
/// `((y % block[0]) * block[1] + x % block[1]) * C + c`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Packed {
    pub scale: f32,
    pub block: [usize; 2],
}

/// Multiply-adds of the dense window.
///
/// Errors: as [`compile`].
pub fn macs(request: &Request) -> Result<u64> {
    Ok(dense::read(dense::decode(request.graph)?, &request.input())?.macs())
}

/// A tensor that a hop gives to the next.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    pub input: String,
    pub output: String,
    pub shape: Vec<usize>,
    /// As ONNX numbers them.
    pub dtype: i32,
}

/// Compiles a graph.
///
/// Errors: `Model` when the graph has something that can't be followed through time, with the node's name; `Config` when
/// the hop does not fit the network's strides, with the next one that does.
pub fn compile(request: &Request) -> Result<Program> {
    let mode = request.mode;
    if mode == Mode::Dense {
        return Err(Error::config("there is nothing to compile in mode dense"));
    }
    let frames = *request.shape.get(request.axis).ok_or_else(|| Error::internal("no time axis"))?;
    if request.hop == 0 || request.hop > frames {
        return Err(Error::config(format!("a hop of {} for a window of {frames}", request.hop)));
    }
    let mut model = dense::decode(request.graph)?;
    let mut input = request.input();
    let packed = pack::pack(&mut model, request.input, &mut input.shape, request.axis);
    let dense = dense::read(model, &input)?;
    let columns = columns::columns(&dense, mode, frames as i64, request.hop as i64)?;
    let k = request.columns.map(|k| k as i64);
    // Twice: first to see what is asked for of earlier columns, then with that kept.
    let (_, kept) = write::write(&dense, &columns, mode, k, Kind::Hop, &Kept::new())?;
    let (written, _) = write::write(&dense, &columns, mode, k, Kind::Hop, &kept)?;
    let prime = match mode {
        Mode::Window => Some(write::write(&dense, &columns, mode, k, Kind::Prime, &kept)?.0),
        _ => None,
    };
    // Of the graph as it came: packing puts zeros between the weights.
    let macs_dense = match packed {
        Some(_) => dense::read(dense::decode(request.graph)?, &request.input())?.macs(),
        None => dense.macs(),
    };
    let (last, used) = written.last;
    let c = &columns[last];
    let lag = match mode {
        Mode::Continuous => {
            let dense_middle = c.extra as f32 - c.count as f32 / 2.0;
            let middle = (c.end(mode) - c.base) as f32 - used as f32 / 2.0;
            (dense_middle - middle) * c.step as f32
        }
        _ => 0.0,
    };
    let warm_after = if mode == Mode::Window { 0 } else { columns::warm_after(c, used, mode).max(0) as usize };
    Ok(Program {
        graph: write::encode(&written.model),
        prime: prime.map(|p| write::encode(&p.model)),
        frames: written.frames as usize,
        shape: input.shape,
        packed,
        states: written.states,
        warm_after,
        lag,
        used: used as usize,
        macs_dense,
        macs: written.macs,
    })
}
