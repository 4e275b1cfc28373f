//! What a stream's ONNX graph takes and gives, read from its protobuf and checked against the manifest. The same check
//! for every backend, before any of them sees the file: a damaged graph and a manifest that does not fit are the same
//! sentence everywhere, and no C++ parser meets bytes that are not ONNX.

use std::{path::PathBuf, time::Instant};

use tract_onnx::{
    pb::{
        GraphProto, ModelProto, ValueInfoProto,
        tensor_proto::{DataLocation, DataType},
        tensor_shape_proto::dimension,
        type_proto,
    },
    prelude::{Framework, TractResult},
};

use crate::{
    compile::{self, Program},
    config::Mode,
    error::{Error, Result},
    model::{Dtype, File, Layout, Model, Stream},
    ring::WINDOW,
};

/// A graph whose inputs and outputs are those that the manifest says.
pub(super) struct Graph {
    pub path: PathBuf,
    pub sha256: String,
    /// The file: what was checked is what is run, whatever happens to the file meanwhile.
    pub bytes: Vec<u8>,
    /// The graph's inputs in its own order, initializers left out.
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    /// What is carried from step to step, as it goes in and as it comes out. A graph that only begins a state takes none.
    pub states_in: Vec<StatePort>,
    pub states_out: Vec<StatePort>,
    /// The input's shape for the window, where it is packed.
    packed: Option<Vec<usize>>,
}

/// A state as it goes in, or as it comes out.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StatePort {
    pub name: String,
    pub shape: Vec<usize>,
    pub element: Element,
}

/// What a state is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    F32,
    I8,
    U8,
}

/// A stream's graphs for a mode that computes only what is new.
pub(super) struct Stepped {
    pub hop: Graph,
    /// Window mode's first hop.
    pub prime: Option<Graph>,
    /// Without its graphs, which are those.
    pub program: Program,
}

/// An input or output as the graph declares it.
pub(super) struct Port {
    pub name: String,
    pub dtype: i32,
    /// None where the graph leaves even the rank open.
    pub dims: Option<Vec<Dim>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Dim {
    Known(usize),
    Symbol(String),
    Open,
}

impl Graph {
    /// Reads one of the stream's files and checks it against the manifest.
    pub fn read(model: &Model, stream: &Stream, file: &File) -> Result<Self> {
        let path = model.folder.join(&file.path);
        // A protobuf ends at 2 GiB, whatever lies behind.
        if std::fs::metadata(&path).is_ok_and(|m| m.len() > i32::MAX as u64) {
            return Err(Error::model(format!("{} is larger than 2 GiB, which no ONNX file is", path.display())));
        }
        let bytes = model.read(file)?;
        let damaged = |what: String| {
            Error::model(format!("{} is not an ONNX file: {what}; install the model again", path.display()))
        };
        let proto = tract_onnx::onnx()
            .proto_model_for_read(&mut bytes.as_slice())
            .map_err(|e| damaged(format!("{e:#}").replace('\n', " ")))?;
        let graph = proto.graph.as_ref().ok_or_else(|| damaged("there is no graph in it".into()))?;
        if graph.initializer.iter().any(|t| t.data_location == Some(DataLocation::External as i32)) {
            return Err(Error::model(format!(
                "{} keeps weights in another file, which the manifest's checksum does not cover; export it as one file",
                path.display()
            )));
        }
        check_windows(graph).map_err(|e| e.context(path.display()))?;
        let has_value = |name: &str| graph.initializer.iter().any(|t| t.name == name);
        let inputs = graph.input.iter().filter(|v| !has_value(&v.name)).map(port).collect();
        let outputs = graph.output.iter().map(port).collect();
        let state = |name: &String, shape: &Vec<usize>| StatePort {
            name: name.clone(),
            shape: shape.clone(),
            element: Element::F32,
        };
        let graph = Graph {
            path,
            sha256: file.sha256.to_lowercase(),
            bytes,
            inputs,
            outputs,
            states_in: stream.state.iter().map(|s| state(&s.input, &s.shape)).collect(),
            states_out: stream.state.iter().map(|s| state(&s.output, &s.shape)).collect(),
            packed: None,
        };
        graph.check(stream, model.labels.len()).map_err(|e| e.context(graph.path.display()))?;
        Ok(graph)
    }

    /// The graph as a mode computes it; None in mode dense.
    ///
    /// Errors: as [`compile::compile`], and `Config` when a hop takes more frames than are kept of a camera, with the largest
    /// hop that does not.
    pub fn stepped(&self, stream: &Stream, mode: Mode, hop: usize, columns: Option<usize>) -> Result<Option<Stepped>> {
        if mode == Mode::Dense {
            return Ok(None);
        }
        let cannot = |what: String| Error::model(format!("mode {} can't be had: {what}", mode.name()));
        let asked = |hop: usize| request(&self.bytes, stream, mode, hop, columns);
        let began = Instant::now();
        let mut program = compile::compile(&asked(hop)?).map_err(|e| e.context(self.path.display()))?;
        log::debug!("{}: compiled for {} in {:?}", self.path.display(), mode.name(), began.elapsed());
        let taken = |program: &Program| Stream { frames: program.frames, ..stream.clone() }.reach();
        let frames = taken(&program);
        if frames > WINDOW {
            let fits = |&hop: &usize| {
                let program = asked(hop).and_then(|request| compile::compile(&request));
                program.is_ok_and(|program| taken(&program) <= WINDOW)
            };
            // A hop that is shorter by less than what is too much would be too long as well.
            let mend = match (1..=hop.saturating_sub(frames - WINDOW)).rev().find(fits) {
                Some(largest) => format!("the largest hop that fits is {largest} (--hop {largest})"),
                None => "no hop of it fits; use mode window or dense".into(),
            };
            return Err(Error::config(format!(
                "a hop of {hop} takes {frames} frames in mode {}, with what its first convolution reaches back to, and no \
                 more than {WINDOW} are kept of a camera; {mend}",
                mode.name()
            )));
        }
        let element = |s: &compile::State| match DataType::try_from(s.dtype) {
            Ok(DataType::Float) => Ok(Element::F32),
            Ok(DataType::Int8) => Ok(Element::I8),
            Ok(DataType::Uint8) => Ok(Element::U8),
            _ => Err(cannot(format!("`{}` would be kept as {}", s.input, dtype_name(s.dtype)))),
        };
        let ports = program
            .states
            .iter()
            .map(|s| Ok(StatePort { name: s.input.clone(), shape: s.shape.clone(), element: element(s)? }));
        let states_in = ports.collect::<Result<Vec<_>>>()?;
        let outputs = program.states.iter().zip(&states_in);
        let states_out: Vec<StatePort> =
            outputs.map(|(s, port)| StatePort { name: s.output.clone(), ..port.clone() }).collect();
        let like_this = |what: &str, bytes: Vec<u8>, states_in: Vec<StatePort>| {
            let named = |name: &String| Port { name: name.clone(), dtype: 0, dims: None };
            let all_in = std::iter::once(&stream.input).chain(states_in.iter().map(|s| &s.name));
            let all_out = std::iter::once(&stream.output).chain(states_out.iter().map(|s| &s.name));
            Graph {
                path: self.path.clone(),
                // What a provider keeps of a graph it keeps apart for each way it is computed.
                sha256: format!("{}-{what}-{}-{hop}-{}", self.sha256, mode.name(), columns.unwrap_or(0)),
                inputs: all_in.map(named).collect(),
                outputs: all_out.map(named).collect(),
                bytes,
                states_out: states_out.clone(),
                states_in,
                packed: program.packed.map(|_| program.shape.clone()),
            }
        };
        let (prime, hop) = (program.prime.take(), std::mem::take(&mut program.graph));
        let prime = prime.map(|bytes| like_this("prime", bytes, Vec::new()));
        let hop = like_this("hop", hop, states_in);
        Ok(Some(Stepped { hop, prime, program }))
    }

    /// The graph in tract's terms.
    pub fn proto(&self) -> TractResult<ModelProto> {
        tract_onnx::onnx().proto_model_for_read(&mut self.bytes.as_slice())
    }

    /// Whether the stream's time axis can have any length.
    pub fn any_length(&self, stream: &Stream) -> bool {
        let dims = self.inputs.iter().find(|p| p.name == stream.input).and_then(|p| p.dims.as_ref());
        match (dims, time_axis(stream.layout)) {
            (Some(dims), Some(t)) => !matches!(dims[t], Dim::Known(_)),
            (None, Some(_)) => true,
            (_, None) => false,
        }
    }

    /// Where an input, or an output, stands in the graph's own order.
    pub fn input_index(&self, name: &str) -> Result<usize> {
        find(&self.inputs, name, "input")
    }

    pub fn output_index(&self, name: &str) -> Result<usize> {
        find(&self.outputs, name, "output")
    }

    /// The shape that each input has when the stream gets `frames` frames, in the graph's order.
    pub fn input_shapes(&self, stream: &Stream, frames: usize) -> Vec<Vec<usize>> {
        let shape = |port: &Port| match self.states_in.iter().find(|s| s.name == port.name) {
            Some(state) => state.shape.clone(),
            None => self.input_shape(stream, frames),
        };
        self.inputs.iter().map(shape).collect()
    }

    /// The shape of the input for `frames` frames.
    pub fn input_shape(&self, stream: &Stream, frames: usize) -> Vec<usize> {
        match &self.packed {
            // [1, C, T, H, W]
            Some(shape) => shape.iter().enumerate().map(|(i, &n)| if i == 2 { frames } else { n }).collect(),
            None => stream.shape(frames),
        }
    }

    /// Whether the input is i8, whatever the manifest says.
    pub fn is_packed(&self) -> bool {
        self.packed.is_some()
    }

    /// What each symbol in the inputs' shapes stands for when the stream gets `frames` frames.
    pub fn symbols(&self, stream: &Stream, frames: usize) -> Vec<(String, usize)> {
        let mut symbols: Vec<(String, usize)> = Vec::new();
        for (port, shape) in self.inputs.iter().zip(self.input_shapes(stream, frames)) {
            for (dim, size) in port.dims.iter().flatten().zip(shape) {
                if let Dim::Symbol(name) = dim
                    && symbols.iter().all(|(n, _)| n != name)
                {
                    symbols.push((name.clone(), size));
                }
            }
        }
        symbols
    }

    fn check(&self, stream: &Stream, labels: usize) -> Result<()> {
        let wrong = |what: String| Err(Error::model(what));
        let dtype = match stream.dtype {
            Dtype::F32 => DataType::Float,
            Dtype::U8 => DataType::Uint8,
        };
        let input = &self.inputs[self.input_index(&stream.input)?];
        input.check(dtype, &stream.shape(stream.frames), "input")?;

        for state in &stream.state {
            let input = &self.inputs[self.input_index(&state.input)?];
            input.check(DataType::Float, &state.shape, "state input")?;
            let output = &self.outputs[self.output_index(&state.output)?];
            output.check(DataType::Float, &state.shape, "state output")?;
        }
        let fed = |name: &str| name == stream.input || stream.state.iter().any(|s| s.input == name);
        if let Some(idle) = self.inputs.iter().find(|p| !fed(&p.name)) {
            return wrong(format!("nothing in the manifest feeds the graph's input `{}`", idle.name));
        }

        let output = &self.outputs[self.output_index(&stream.output)?];
        if output.dtype != DataType::Float as i32 {
            return wrong(format!("output `{}` is {}, not f32", output.name, dtype_name(output.dtype)));
        }
        let known: Option<Vec<usize>> = output
            .dims
            .as_ref()
            .and_then(|dims| dims.iter().map(|d| if let Dim::Known(n) = d { Some(*n) } else { None }).collect());
        // Open dimensions are counted when the graph has run once, at load.
        if let Some(known) = known
            && known.iter().product::<usize>() != labels
        {
            return wrong(format!("output `{}` has shape {known:?}, but there are {labels} labels", output.name));
        }
        Ok(())
    }
}

/// What the window compiler is asked for, for one of a stream's graphs.
pub fn request<'a>(
    graph: &'a [u8],
    stream: &'a Stream,
    mode: Mode,
    hop: usize,
    columns: Option<usize>,
) -> Result<compile::Request<'a>> {
    let cannot = |what: &str| Error::model(format!("mode {} can't be had: {what}; use mode dense", mode.name()));
    let axis = time_axis(stream.layout).ok_or_else(|| cannot("its input has no time axis"))?;
    if !stream.state.is_empty() {
        return Err(cannot("it carries a state of its own already"));
    }
    if !hop.is_multiple_of(stream.step) {
        return Err(Error::config(format!(
            "it takes every {}th frame, so a hop must be a multiple of that, and {hop} is none",
            stream.step
        )));
    }
    let shape = stream.shape(stream.frames);
    let (input, output) = (stream.input.as_str(), stream.output.as_str());
    Ok(compile::Request { graph, input, shape, axis, output, mode, hop: hop / stream.step, columns })
}

impl Port {
    fn check(&self, dtype: DataType, shape: &[usize], what: &str) -> Result<()> {
        if self.dtype != dtype as i32 {
            return Err(Error::model(format!(
                "{what} `{}` is {} in the graph and {} in the manifest",
                self.name,
                dtype_name(self.dtype),
                dtype_name(dtype as i32)
            )));
        }
        let Some(dims) = &self.dims else { return Ok(()) };
        let fits = dims.len() == shape.len()
            && dims.iter().zip(shape).all(|(dim, size)| !matches!(dim, Dim::Known(n) if n != size));
        if !fits {
            let dims: Vec<String> = dims.iter().map(Dim::to_string).collect();
            return Err(Error::model(format!(
                "{what} `{}` has shape [{}] in the graph and {shape:?} by the manifest",
                self.name,
                dims.join(", ")
            )));
        }
        Ok(())
    }
}

impl std::fmt::Display for Dim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Dim::Known(n) => write!(f, "{n}"),
            Dim::Symbol(name) => f.write_str(name),
            Dim::Open => f.write_str("?"),
        }
    }
}

/// Which axis of a stream's input is time.
pub fn time_axis(layout: Layout) -> Option<usize> {
    match layout {
        Layout::Ncthw => Some(2),
        Layout::Ntchw | Layout::Nthwc => Some(1),
        Layout::Nchw => None,
    }
}

fn find(ports: &[Port], name: &str, what: &str) -> Result<usize> {
    ports.iter().position(|p| p.name == name).ok_or_else(|| {
        let known: Vec<String> = ports.iter().map(|p| format!("`{}`", p.name)).collect();
        Error::model(format!("the graph has no {what} `{name}`; it has {}", known.join(", ")))
    })
}

/// What surrounds a picture, or a clip, with more than this is damaged: I3D's widest are 3 on every side.
const MOST_PADDED: i64 = 1 << 16;

/// The numbers of windows, which backends trust: ONNX Runtime divides by a stride of 0, tract asks for all memory, and more,
/// for pads of a billion.
fn check_windows(graph: &GraphProto) -> Result<()> {
    for node in &graph.node {
        let bad = |name: &str, values: &[i64]| {
            let name = format!("node `{}` ({}) has {name} of {values:?}", node.name, node.op_type);
            Error::model(format!("{name}; install the model again"))
        };
        // Those of `Pad` may cut off.
        let padded = |pads: &[i64]| pads.iter().fold(1i64, |all, pad| (pad.max(&0) + 1).saturating_mul(all));
        for attribute in &node.attribute {
            let values = &attribute.ints;
            let good = match attribute.name.as_str() {
                "kernel_shape" | "strides" | "dilations" => values.iter().all(|n| (1..=MOST_PADDED).contains(n)),
                "pads" => {
                    let range = if node.op_type == "Pad" { -MOST_PADDED } else { 0 }..=MOST_PADDED;
                    values.iter().all(|n| range.contains(n)) && padded(values) <= MOST_PADDED
                }
                "group" => attribute.i >= 1,
                _ => true,
            };
            if !good {
                let one = [attribute.i];
                return Err(bad(&attribute.name, if values.is_empty() { &one } else { values }));
            }
        }
        let pads = node.input.get(1).filter(|_| node.op_type == "Pad");
        if let Some(tensor) = pads.and_then(|name| graph.initializer.iter().find(|t| t.name == *name)) {
            let raw = tensor.raw_data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap_or_default()));
            let pads: Vec<i64> = tensor.int64_data.iter().copied().chain(raw).collect();
            if !pads.iter().all(|n| (-MOST_PADDED..=MOST_PADDED).contains(n)) || padded(&pads) > MOST_PADDED {
                return Err(bad("pads", &pads));
            }
        }
    }
    Ok(())
}

fn port(value: &ValueInfoProto) -> Port {
    let tensor = value.r#type.as_ref().and_then(|t| t.value.as_ref()).map(|type_proto::Value::TensorType(t)| t);
    let dims = tensor.and_then(|t| t.shape.as_ref()).map(|shape| shape.dim.iter().map(|d| dim(&d.value)).collect());
    Port { name: value.name.clone(), dtype: tensor.map_or(0, |t| t.elem_type), dims }
}

fn dim(value: &Option<dimension::Value>) -> Dim {
    match value {
        Some(dimension::Value::DimValue(n)) if *n > 0 => Dim::Known(*n as usize),
        Some(dimension::Value::DimParam(name)) if !name.is_empty() => Dim::Symbol(name.clone()),
        _ => Dim::Open,
    }
}

fn dtype_name(dtype: i32) -> String {
    match DataType::try_from(dtype) {
        Ok(DataType::Float) => "f32".into(),
        Ok(DataType::Float16) => "f16".into(),
        Ok(other) => format!("{other:?}").to_lowercase(),
        Err(_) => format!("type {dtype}"),
    }
}

#[cfg(test)]
mod tests {
    use tract_onnx::pb::{AttributeProto, NodeProto, TensorProto};

    use super::*;

    #[test]
    fn windows_that_no_network_has_are_refused_by_name() {
        let checked = |op: &str, name: &str, values: &[i64]| {
            let attribute = AttributeProto { name: name.into(), ints: values.to_vec(), ..AttributeProto::default() };
            let node = NodeProto { op_type: op.into(), attribute: vec![attribute], ..NodeProto::default() };
            check_windows(&GraphProto { node: vec![node], ..GraphProto::default() })
        };
        for name in ["strides", "dilations", "kernel_shape"] {
            assert!(checked("Conv", name, &[1, 7, 224]).is_ok());
            for bad in [[2, 0, 1], [2, -1, 1], [2, 1 << 40, 1], [i64::MIN, 1, 1], [i64::MAX, 1, 1]] {
                let e = checked("Conv", name, &bad).unwrap_err().to_string();
                assert!(e.contains("(Conv)") && e.contains(name), "{e}");
            }
        }
        assert!(checked("Conv", "pads", &[3; 6]).is_ok() && checked("Pad", "pads", &[-3, 0, 3, 0]).is_ok());
        for bad in [[0, -1, 0, 0], [1 << 30, 0, 0, 0], [1000; 4], [i64::MAX; 4], [i64::MIN; 4]] {
            assert!(checked("Conv", "pads", &bad).is_err(), "{bad:?}");
        }
        let pads = |values: &[i64]| {
            let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let tensor = TensorProto { name: "p".into(), raw_data: raw, ..TensorProto::default() };
            let node = NodeProto { op_type: "Pad".into(), input: vec!["x".into(), "p".into()], ..NodeProto::default() };
            check_windows(&GraphProto { node: vec![node], initializer: vec![tensor], ..GraphProto::default() })
        };
        assert!(pads(&[0, 0, 2, -1]).is_ok());
        assert!(pads(&[0, 0, 1 << 27, 0]).is_err() && pads(&[i64::MAX; 4]).is_err() && pads(&[i64::MIN; 4]).is_err());
    }
}
