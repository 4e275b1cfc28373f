//! Writes the graph of one hop: each node on its fresh columns (and, in window mode, on those at the window's
//! beginning), with what it needs of earlier columns from state inputs.

use std::collections::{BTreeMap, HashMap};

use prost::Message;
use tract_onnx::pb::{
    ModelProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, tensor_proto::DataType,
    tensor_shape_proto, type_proto,
};

use super::{
    Mode, State,
    columns::{Columns, needed},
    dense::{Dense, Id, Node, Rule, Slide, Tensor, ints_attribute, prune, set_pads},
};
use crate::error::{Error, Result};

/// A value of the new graph: these columns of a tensor.
#[derive(Debug, Clone)]
struct Part {
    from: i64,
    to: i64,
    name: String,
}

pub(super) struct Written {
    pub model: ModelProto,
    pub states: Vec<State>,
    /// Frames that the graph takes, up to the window's end.
    pub frames: i64,
    pub macs: u64,
    /// The last tensor with a time axis, and how many of its columns are used.
    pub last: (Id, i64),
}

/// Which graph is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A hop's.
    Hop,
    /// The dense window's, which gives the states of a hop's besides.
    Prime,
    /// One dense run over everything, of which the columns are taken that a hop's score stands for.
    Reference,
}

/// First columns that are kept, by tensor; for the input, which is not kept but given anew, the first that a hop takes.
pub(super) type Kept = BTreeMap<Id, i64>;

/// Writes a graph. `kept`: what the hops keep; it is found by writing a hop's graph without.
pub(super) fn write(
    dense: &Dense,
    columns: &[Columns],
    mode: Mode,
    k: Option<i64>,
    kind: Kind,
    kept: &Kept,
) -> Result<(Written, Kept)> {
    let mut writer = Writer {
        dense,
        columns,
        mode,
        kind,
        kept,
        nodes: Vec::new(),
        macs: HashMap::new(),
        constants: Vec::new(),
        parts: vec![Vec::new(); dense.tensors.len()],
        maker: vec![None; dense.tensors.len()],
        made: HashMap::new(),
        needs: Kept::new(),
        input_from: i64::MAX,
        names: 0,
    };
    writer.run(k)
}

struct Writer<'a> {
    dense: &'a Dense,
    columns: &'a [Columns],
    mode: Mode,
    kind: Kind,
    kept: &'a Kept,
    nodes: Vec<NodeProto>,
    /// Multiply-adds of a node, by its first output.
    macs: HashMap<String, u64>,
    constants: Vec<TensorProto>,
    /// What each tensor has been computed of.
    parts: Vec<Vec<Part>>,
    maker: Vec<Option<usize>>,
    /// Every range that was asked for and put together.
    made: HashMap<(Id, i64, i64), String>,
    /// What was asked for of columns before the fresh ones.
    needs: Kept,
    input_from: i64,
    names: usize,
}

impl Writer<'_> {
    fn whole(&self, id: Id) -> bool {
        self.kind != Kind::Hop || self.columns[id].whole
    }

    fn run(&mut self, k: Option<i64>) -> Result<(Written, Kept)> {
        let dense = self.dense;
        let mut last = None;
        for (number, node) in dense.nodes.iter().enumerate() {
            match node.rule {
                Rule::Timeless => self.push(node.proto.clone(), node.macs),
                Rule::Close { from, to, mean } => {
                    let input = node.inputs.iter().flatten().copied().next();
                    let input = input.ok_or_else(|| Error::internal("a pooling of nothing"))?;
                    let c = &self.columns[input];
                    // The same columns, counted from where they end.
                    let (mut from, to) = match self.mode {
                        Mode::Continuous => (from + c.end(self.mode) - c.count, to + c.end(self.mode) - c.count),
                        _ => (from, to),
                    };
                    if let Some(k) = k
                        && (self.kind == Kind::Reference || (self.mode == Mode::Continuous && mean))
                    {
                        from = to - k;
                    }
                    last = Some((input, to - from));
                    let mut proto = node.proto.clone();
                    proto.input[0] = self.get(input, from, to)?;
                    if proto.op_type == "AveragePool"
                        && let Some(a) = proto.attribute.iter_mut().find(|a| a.name == "kernel_shape")
                    {
                        a.ints[dense.tensors[input].axis - 2] = to - from;
                    }
                    self.push(proto, node.macs);
                }
                Rule::Pointwise | Rule::Slide(_) => {
                    for &id in &node.outputs {
                        self.maker[id] = Some(number);
                    }
                    let Some(&out) = node.outputs.first() else { continue };
                    let c = self.columns[out];
                    let mut blocks = Vec::new();
                    if self.whole(out) {
                        blocks.push((0, c.count));
                    } else {
                        if self.mode == Mode::Window && c.left > 0 {
                            blocks.push((0, c.left));
                        }
                        blocks.push((c.fresh_from(), c.end(self.mode)));
                    }
                    for (from, to) in blocks {
                        self.block(number, node, from, to)?;
                    }
                }
            }
        }
        let last = last.ok_or_else(|| Error::model("nothing in it pools, averages or flattens time"))?;
        let mut states = Vec::new();
        for (&id, &from) in self.kept.iter().filter(|(id, _)| **id != dense.input) {
            let c = &self.columns[id];
            let next = self.get(id, from + c.fresh, c.base - c.delay)?;
            let name = &dense.tensors[id].name;
            let output = format!("{name}/kept/next");
            let mut shape = dense.tensors[id].shape.clone();
            shape[dense.tensors[id].axis] = (c.fresh_from() - from) as usize;
            match channels_last(&dense.tensors[id]) {
                Some([there, _]) => {
                    shape = there.iter().map(|&i| shape[i as usize]).collect();
                    let mut proto = node("Transpose", vec![next], &output);
                    proto.attribute.push(ints_attribute("perm", there.to_vec()));
                    self.push(proto, 0);
                }
                // A name of its own: what is kept may be a part as it is.
                None => self.push(node("Identity", vec![next], &output), 0),
            }
            states.push(State { input: state_name(name), output, shape, dtype: dense.tensors[id].dtype as i32 });
        }
        let input = &dense.tensors[dense.input];
        let frames = self.columns[dense.input].base - self.given_from();
        let mut model = dense.model.clone();
        let graph = model.graph.get_or_insert_default();
        let mut shape = input.shape.clone();
        shape[input.axis] = frames as usize;
        graph.input = vec![value(&input.name, input.dtype as i32, &shape)];
        graph.value_info.clear();
        if self.kind == Kind::Hop {
            graph.input.extend(states.iter().map(|s| value(&s.input, s.dtype, &s.shape)));
        }
        graph.output.extend(states.iter().map(|s| value(&s.output, s.dtype, &s.shape)));
        graph.node = std::mem::take(&mut self.nodes);
        graph.initializer.append(&mut self.constants);
        let outputs: Vec<String> = graph.output.iter().map(|v| v.name.clone()).collect();
        prune(graph, &outputs);
        let of = |n: &NodeProto| n.output.first().and_then(|name| self.macs.get(name)).copied().unwrap_or(0);
        let macs = graph.node.iter().map(of).sum();
        let mut needs = std::mem::take(&mut self.needs);
        needs.insert(dense.input, self.input_from.min(self.columns[dense.input].base - 1));
        Ok((Written { model, states, frames, macs, last }, needs))
    }

    fn push(&mut self, proto: NodeProto, macs: u64) {
        if let (Some(name), true) = (proto.output.first(), macs > 0) {
            self.macs.insert(name.clone(), macs);
        }
        self.nodes.push(proto);
    }

    /// Computes columns `from..to` of a node's outputs and keeps them as parts.
    fn block(&mut self, number: usize, node: &Node, from: i64, to: i64) -> Result<()> {
        // The newest columns keep the tensor's name.
        let newest = node.outputs.first().is_some_and(|&id| self.whole(id) || from == self.columns[id].fresh_from());
        let suffix = if newest { String::new() } else { "/first".into() };
        let names = self.compute(number, from, to, &suffix)?;
        for (&id, name) in node.outputs.iter().zip(names) {
            self.parts[id].push(Part { from, to, name });
        }
        Ok(())
    }

    fn compute(&mut self, number: usize, from: i64, to: i64, suffix: &str) -> Result<Vec<String>> {
        let node = &self.dense.nodes[number];
        let mut proto = node.proto.clone();
        let (mut need, mut pads) = ((from, to), None);
        if let (Rule::Slide(slide), Some(&input), Some(&out)) =
            (node.rule, node.inputs.iter().flatten().next(), node.outputs.first())
        {
            need = needed(&slide, from, to);
            let edges = self.kind == Kind::Reference || self.mode != Mode::Continuous;
            // Padding where the window begins and where it ends, and nowhere else.
            let begins = from == 0 && (self.whole(out) || self.mode == Mode::Window);
            let ends = edges && to == self.columns[out].count;
            pads = Some((slide, if begins { slide.front } else { 0 }, if ends { slide.back } else { 0 }));
            if begins {
                need.0 = 0;
            }
            if ends {
                need.1 = self.columns[input].count;
            }
        }
        for (at, id) in node.inputs.iter().enumerate() {
            if let Some(id) = id {
                proto.input[at] = self.get(*id, need.0, need.1)?;
            }
        }
        if let Some((slide, front, back)) = pads {
            if proto.op_type == "Pad" {
                let name = proto.input[1].clone();
                let all = self.dense.model.graph.as_ref().and_then(|g| g.initializer.iter().find(|t| t.name == name));
                let all = all.and_then(super::dense::int64s).ok_or_else(|| {
                    Error::model(format!("node `{}` (Pad): its pads are not stored in the file", proto.name))
                })?;
                let (t, n) = slide.spatial;
                let mut all = all;
                (all[t], all[n + t]) = (front, back);
                proto.input[1] = self.int64s(all);
            } else {
                set_pads(&mut proto, &slide, front, back);
                if proto.op_type == "Conv" && slide.kernel == 1 && self.kind == Kind::Hop {
                    proto.input[0] = self.every(&slide, &mut proto, number)?;
                }
            }
        }
        let names: Vec<String> =
            proto.output.iter().map(|n| if n.is_empty() { String::new() } else { format!("{n}{suffix}") }).collect();
        proto.output = names.clone();
        if !proto.name.is_empty() {
            proto.name = format!("{}{suffix}", proto.name);
        }
        self.push(proto, node.macs * (to - from) as u64);
        Ok(names)
    }

    /// Takes a stride in time out of a convolution without reach, into a pool of single columns before it.
    ///
    /// tract (0.23) moves such strides up through convolutions, and forgets on the way at which column to begin
    /// (`fuse_downsample_into_conv`): wrong numbers behind a slice.
    fn every(&mut self, slide: &Slide, proto: &mut NodeProto, number: usize) -> Result<String> {
        let mut pool =
            node("MaxPool", vec![proto.input[0].clone()], &format!("{}/every/{}", proto.output[0], self.names));
        self.names += 1;
        let (t, n) = slide.spatial;
        let mut strides = vec![1; n];
        strides[t] = slide.stride;
        pool.attribute = vec![ints_attribute("kernel_shape", vec![1; n]), ints_attribute("strides", strides)];
        let Some(own) = proto.attribute.iter_mut().find(|a| a.name == "strides") else {
            return Err(Error::internal(format!("node {number} has a stride and no strides")));
        };
        own.ints[t] = 1;
        let name = pool.output[0].clone();
        self.push(pool, 0);
        Ok(name)
    }

    /// The value that holds columns `from..to` of a tensor.
    fn get(&mut self, id: Id, from: i64, to: i64) -> Result<String> {
        if let Some(name) = self.made.get(&(id, from, to)) {
            return Ok(name.clone());
        }
        let name = self.find(id, from, to)?;
        self.made.insert((id, from, to), name.clone());
        Ok(name)
    }

    fn find(&mut self, id: Id, from: i64, to: i64) -> Result<String> {
        let tensor = &self.dense.tensors[id];
        if from >= to {
            return Err(Error::internal(format!("no columns of `{}` were asked for", tensor.name)));
        }
        if id == self.dense.input {
            self.input_from = self.input_from.min(from);
            let all = Part { from: self.given_from(), to: self.columns[id].base, name: tensor.name.clone() };
            return Ok(self.slice(tensor, &all, from, to));
        }
        let covered = |part: &&Part| part.from <= from && to <= part.to;
        if let Some(part) = self.parts[id].iter().find(covered).cloned() {
            return Ok(self.slice(tensor, &part, from, to));
        }
        // What is cheap to make again is not kept: a dequantized state, and what comes right behind the input.
        if let Some(number) = self.maker[id].filter(|&n| self.passes(n) && !self.kept.contains_key(&id)) {
            let names = self.compute(number, from, to, &format!("/{}", self.names))?;
            self.names += 1;
            return Ok(names[0].clone());
        }
        let c = self.columns[id];
        let first = if self.mode == Mode::Window { from.max(c.left) } else { from };
        let need = self.needs.entry(id).or_insert(first);
        *need = (*need).min(first);
        let kept = self.kept.get(&id).copied().unwrap_or(first);
        let state = Part { from: kept, to: c.fresh_from(), name: self.state(tensor) };
        let mut pieces = self.parts[id].clone();
        pieces.push(state);
        pieces.sort_by_key(|p| p.from);
        if self.mode != Mode::Window {
            // Kept and fresh ones together once, for whoever reads them and for the next hop.
            let (all_from, all_to) = (kept, c.end(self.mode));
            let name = match self.made.get(&(id, all_from, all_to)) {
                Some(name) => name.clone(),
                None => {
                    let name = self.concat(tensor, pieces.iter().map(|p| p.name.clone()).collect());
                    self.made.insert((id, all_from, all_to), name.clone());
                    name
                }
            };
            return Ok(self.slice(tensor, &Part { from: all_from, to: all_to, name }, from, to));
        }
        let mut names = Vec::new();
        let mut at = from;
        for piece in &pieces {
            let (a, b) = (piece.from.max(from), piece.to.min(to));
            if a < b {
                if a != at {
                    break;
                }
                names.push(self.slice(tensor, piece, a, b));
                at = b;
            }
        }
        if at != to {
            return Err(Error::internal(format!("columns {from} to {to} of `{}` are nowhere", tensor.name)));
        }
        Ok(if names.len() == 1 { names.remove(0) } else { self.concat(tensor, names) })
    }

    /// The value of a state as it comes in.
    fn state(&mut self, tensor: &Tensor) -> String {
        let name = state_name(&tensor.name);
        let Some([_, back]) = channels_last(tensor) else { return name };
        let turned = format!("{name}/turned");
        if !self.nodes.iter().any(|n| n.output[0] == turned) {
            let mut proto = node("Transpose", vec![name], &turned);
            proto.attribute.push(ints_attribute("perm", back.to_vec()));
            self.push(proto, 0);
        }
        turned
    }

    /// Where the graph's input begins: known once everything was asked for, so the graph is written twice.
    fn given_from(&self) -> i64 {
        match self.kept.get(&self.dense.input) {
            _ if self.mode == Mode::Window || self.kind != Kind::Hop => 0,
            Some(&from) => from,
            None => self.input_from,
        }
    }

    /// Whether a node's output is made again from its input's kept columns.
    fn passes(&self, number: usize) -> bool {
        let node = &self.dense.nodes[number];
        let mut inputs = node.inputs.iter().flatten();
        let (Some(&input), None) = (inputs.next(), inputs.next()) else { return false };
        if node.rule != Rule::Pointwise || node.outputs.len() != 1 {
            return false;
        }
        let of_input = |id: Id| id == self.dense.input || self.maker[id].is_some_and(|n| self.of_input(n));
        node.proto.op_type == "DequantizeLinear" || (node.macs == 0 && of_input(input))
    }

    fn of_input(&self, number: usize) -> bool {
        let node = &self.dense.nodes[number];
        let mut inputs = node.inputs.iter().flatten();
        let (Some(&input), None) = (inputs.next(), inputs.next()) else { return false };
        let before = input == self.dense.input || self.maker[input].is_some_and(|n| self.of_input(n));
        node.rule == Rule::Pointwise && node.macs == 0 && node.outputs.len() == 1 && before
    }

    fn slice(&mut self, tensor: &Tensor, part: &Part, from: i64, to: i64) -> String {
        if (part.from, part.to) == (from, to) {
            return part.name.clone();
        }
        let starts = self.int64s(vec![from - part.from]);
        let ends = self.int64s(vec![to - part.from]);
        let axes = self.int64s(vec![tensor.axis as i64]);
        let name = self.name(&tensor.name);
        self.push(node("Slice", vec![part.name.clone(), starts, ends, axes], &name), 0);
        name
    }

    fn concat(&mut self, tensor: &Tensor, names: Vec<String>) -> String {
        let name = self.name(&tensor.name);
        let mut proto = node("Concat", names, &name);
        proto.attribute.push(tract_onnx::pb::AttributeProto {
            name: "axis".into(),
            r#type: tract_onnx::pb::attribute_proto::AttributeType::Int as i32,
            i: tensor.axis as i64,
            ..Default::default()
        });
        self.push(proto, 0);
        name
    }

    fn name(&mut self, of: &str) -> String {
        self.names += 1;
        format!("{of}/columns/{}", self.names)
    }

    fn int64s(&mut self, values: Vec<i64>) -> String {
        let text: Vec<String> = values.iter().map(i64::to_string).collect();
        let name = format!("columns/int64/{}", text.join(","));
        if !self.constants.iter().any(|t| t.name == name) {
            self.constants.push(TensorProto {
                name: name.clone(),
                dims: vec![values.len() as i64],
                data_type: DataType::Int64 as i32,
                int64_data: values,
                ..TensorProto::default()
            });
        }
        name
    }
}

/// How the axes of a state are turned when it goes out, and when it comes in; None where they stay.
///
/// Integers are kept with their channels last, as OpenVINO's convolutions of integers take them: it then neither moves a
/// byte for the turn nor for its own layout (of I3D's RGB hop, reorders were an eighth).
fn channels_last(tensor: &Tensor) -> Option<[[i64; 5]; 2]> {
    let integer = matches!(tensor.dtype, DataType::Int8 | DataType::Uint8);
    (integer && tensor.shape.len() == 5 && tensor.axis == 2).then_some([[0, 2, 3, 4, 1], [0, 4, 1, 2, 3]])
}

fn state_name(tensor: &str) -> String {
    format!("{tensor}/kept")
}

fn node(op: &str, inputs: Vec<String>, output: &str) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        name: output.into(),
        input: inputs,
        output: vec![output.into()],
        ..NodeProto::default()
    }
}

fn value(name: &str, dtype: i32, shape: &[usize]) -> ValueInfoProto {
    let dim = |&n: &usize| tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::dimension::Value::DimValue(n as i64)),
        ..Default::default()
    };
    let tensor =
        type_proto::Tensor { elem_type: dtype, shape: Some(TensorShapeProto { dim: shape.iter().map(dim).collect() }) };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), r#type: Some(r#type), ..Default::default() }
}

/// The graph's bytes.
pub(super) fn encode(model: &ModelProto) -> Vec<u8> {
    model.encode_to_vec()
}
