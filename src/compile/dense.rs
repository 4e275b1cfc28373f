//! Reads a dense ONNX graph: every shape pinned, every padding in numbers, and for every node how its columns depend on
//! those of its inputs. A column is one index of the time axis. What has no rule is refused here, by name.

use std::collections::{HashMap, HashSet};

use prost::Message;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, attribute_proto::AttributeType,
    tensor_proto::DataType,
};

use crate::error::{Error, Result};

/// Number of a tensor that has a time axis.
pub(super) type Id = usize;

pub(super) struct Dense {
    /// The graph as it was, but for its nodes.
    pub model: ModelProto,
    pub nodes: Vec<Node>,
    pub tensors: Vec<Tensor>,
    pub input: Id,
}

impl Dense {
    /// Multiply-adds of the whole graph.
    pub fn macs(&self) -> u64 {
        let columns = |n: &Node| n.outputs.first().map_or(1, |&id| self.tensors[id].columns() as u64);
        self.nodes.iter().map(|n| n.macs * columns(n)).sum()
    }
}

/// A tensor with a time axis, as it is in the dense graph.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    /// Which of the axes is time.
    pub axis: usize,
    pub dtype: DataType,
}

impl Tensor {
    pub fn columns(&self) -> i64 {
        self.shape[self.axis] as i64
    }
}

pub(super) struct Node {
    /// Paddings are in numbers.
    pub proto: NodeProto,
    pub rule: Rule,
    /// Which of its inputs have a time axis.
    pub inputs: Vec<Option<Id>>,
    /// Its outputs, where they have a time axis.
    pub outputs: Vec<Id>,
    /// Multiply-adds for one column of output (of the whole output, where that has no time).
    pub macs: u64,
}

/// How a node's output columns depend on its input columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// There is no time in what it reads.
    Timeless,
    /// Column j of every input gives column j.
    Pointwise,
    /// Columns `j * stride - front` to `j * stride - front + kernel - 1` give column j; beyond the ends is padding.
    Slide(Slide),
    /// The columns `from..to` of the window become something without time.
    Close { from: i64, to: i64, mean: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slide {
    /// Dilation included.
    pub kernel: i64,
    pub stride: i64,
    pub front: i64,
    pub back: i64,
    /// Index of the time axis among those that the padding speaks of, and how many those are.
    pub spatial: (usize, usize),
}

/// Elementwise operators that take one tensor, or several broadcast against each other.
const ELEMENTWISE: [&str; 42] = [
    "Abs",
    "Add",
    "BatchNormalization",
    "Cast",
    "Ceil",
    "Clip",
    "Cos",
    "DequantizeLinear",
    "Div",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Mish",
    "Mul",
    "Neg",
    "PRelu",
    "Pow",
    "QuantizeLinear",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Sum",
    "Tanh",
];

/// What a graph is read with.
pub(super) struct Input<'a> {
    pub name: &'a str,
    /// Every axis pinned.
    pub shape: Vec<usize>,
    pub axis: usize,
    pub output: &'a str,
    /// Which pools end time, where that was decided at another length than this: a pool over all of a window's columns is
    /// an ordinary one over a longer clip's.
    pub closing: Option<Closing>,
}

/// The pools that end time, by their output: how many of the window's last columns they leave out.
pub(super) type Closing = HashMap<String, i64>;

pub(super) fn decode(bytes: &[u8]) -> Result<ModelProto> {
    ModelProto::decode(bytes).map_err(|e| Error::model(format!("it is not an ONNX file: {e}")))
}

/// The pools that end time in this graph.
pub(super) fn closing(dense: &Dense) -> Closing {
    let pools = dense.nodes.iter().filter(|n| n.proto.op_type.ends_with("Pool"));
    let ends = pools.filter_map(|node| match (node.rule, node.inputs.iter().flatten().next()) {
        (Rule::Close { to, .. }, Some(&input)) => {
            Some((node.proto.output.first()?.clone(), dense.tensors[input].columns() - to))
        }
        _ => None,
    });
    ends.collect()
}

pub(super) fn read(mut model: ModelProto, input: &Input) -> Result<Dense> {
    let mut graph = model.graph.take().ok_or_else(|| Error::model("there is no graph in it"))?;
    // The oldest in which Slice takes its bounds as inputs, and Pad its pads.
    let opset = model.opset_import.iter().filter(|o| o.domain.is_empty() || o.domain == "ai.onnx").map(|o| o.version);
    let opset = match opset.max() {
        None => return Err(Error::model("it does not say which opset it is of")),
        Some(version) if version < 11 => {
            return Err(Error::model(format!("it is of opset {version}; export it with 11 or a newer one")));
        }
        Some(version) => version,
    };
    prune(&mut graph, &[input.output]);
    constants_to_initializers(&mut graph);
    let mut reader = Reader::new(&graph, input, opset)?;
    let mut nodes = Vec::with_capacity(graph.node.len());
    for (number, node) in graph.node.iter().enumerate() {
        let named = if node.name.is_empty() { format!("number {number}") } else { format!("`{}`", node.name) };
        let node = reader.node(node.clone()).map_err(|e| e.context(format_args!("node {named} ({})", node.op_type)))?;
        nodes.push(node);
    }
    if reader.ids.contains_key(input.output) {
        return Err(Error::model(format!(
            "its output `{}` still has a time axis; only a network that averages, pools or flattens time before its \
             output can be run hop by hop",
            input.output
        )));
    }
    if !reader.closed.contains(input.output) {
        return Err(Error::model(format!("its output `{}` does not depend on its input", input.output)));
    }
    let Reader { tensors, .. } = reader;
    model.graph = Some(GraphProto { node: Vec::new(), ..graph });
    Ok(Dense { model, nodes, tensors, input: 0 })
}

/// Takes the nodes away that nothing needs of which these outputs are made.
pub(super) fn prune(graph: &mut GraphProto, outputs: &[impl AsRef<str>]) {
    let mut needed: HashSet<String> = outputs.iter().map(|n| n.as_ref().to_owned()).collect();
    let mut keep = vec![false; graph.node.len()];
    // Backwards once is enough where nodes are in order; where they are not, the reader says so.
    for (node, keep) in graph.node.iter().zip(&mut keep).rev() {
        if node.output.iter().any(|name| needed.contains(name)) {
            *keep = true;
            needed.extend(node.input.iter().filter(|n| !n.is_empty()).cloned());
        }
    }
    let mut kept = keep.iter();
    graph.node.retain(|_| kept.next() == Some(&true));
    graph.initializer.retain(|t| needed.contains(&t.name));
}

/// Constants that stand among the nodes, as some exporters write them, to where the others are.
fn constants_to_initializers(graph: &mut GraphProto) {
    let (constants, nodes): (Vec<_>, Vec<_>) = std::mem::take(&mut graph.node)
        .into_iter()
        .partition(|n| n.op_type == "Constant" && n.output.len() == 1 && n.attribute.iter().any(|a| a.t.is_some()));
    graph.node = nodes;
    for mut node in constants {
        if let Some(value) = node.attribute.iter_mut().find_map(|a| a.t.take()) {
            graph.initializer.push(TensorProto { name: node.output.remove(0), ..value });
        }
    }
}

struct Reader<'a> {
    opset: i64,
    closing: Option<Closing>,
    tensors: Vec<Tensor>,
    ids: HashMap<String, Id>,
    /// Constants by name: initializers, and what is made of nothing else; with a shape where it is known.
    constants: HashMap<String, Option<Constant<'a>>>,
    /// Tensors without time that were made of all of it.
    closed: HashSet<String>,
}

#[derive(Clone)]
struct Constant<'a> {
    shape: Vec<usize>,
    dtype: i32,
    value: Option<&'a TensorProto>,
}

impl<'a> Reader<'a> {
    fn new(graph: &'a GraphProto, input: &Input, opset: i64) -> Result<Self> {
        let declared = graph.input.iter().find(|v| v.name == input.name);
        let Some(declared) = declared else {
            return Err(Error::model(format!("it has no input `{}`", input.name)));
        };
        let dtype = declared.r#type.as_ref().and_then(|t| t.value.as_ref()).map(|v| {
            let tract_onnx::pb::type_proto::Value::TensorType(t) = v;
            t.elem_type
        });
        let dtype = dtype.and_then(|t| DataType::try_from(t).ok()).unwrap_or(DataType::Float);
        let first = Tensor { name: input.name.to_owned(), shape: input.shape.clone(), axis: input.axis, dtype };
        let constants = graph.initializer.iter().map(|t| {
            let shape = t.dims.iter().map(|&d| d.max(0) as usize).collect();
            let value = Some(t);
            (t.name.clone(), Some(Constant { shape, dtype: t.data_type, value }))
        });
        let others = graph.input.iter().filter(|v| v.name != input.name);
        let constants: HashMap<_, _> = constants.collect();
        if let Some(other) = others.filter(|v| !constants.contains_key(&v.name)).map(|v| &v.name).next() {
            return Err(Error::model(format!(
                "it has another input, `{other}`; a network that carries its own state is run hop by hop as it is, in \
                 mode dense"
            )));
        }
        let ids = [(first.name.clone(), 0)].into();
        Ok(Reader {
            opset,
            closing: input.closing.clone(),
            ids,
            tensors: vec![first],
            constants,
            closed: HashSet::new(),
        })
    }

    fn node(&mut self, mut proto: NodeProto) -> Result<Node> {
        if proto.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty()) {
            return Err(Error::model(
                "has a graph inside (a loop or a condition), which can't be followed through time",
            ));
        }
        for name in proto.input.iter().filter(|n| !n.is_empty()) {
            let known = self.ids.contains_key(name) || self.constants.contains_key(name) || self.closed.contains(name);
            if !known {
                return Err(Error::model(format!(
                    "reads `{name}` before anything makes it: the nodes go in a circle, or are \
                     not in order"
                )));
            }
        }
        if let Some(again) = proto.output.iter().find(|name| {
            self.ids.contains_key(*name) || self.constants.contains_key(*name) || self.closed.contains(*name)
        }) {
            return Err(Error::model(format!("makes `{again}`, which is there already")));
        }
        let inputs: Vec<Option<Id>> = proto.input.iter().map(|name| self.ids.get(name).copied()).collect();
        let Some(first) = inputs.iter().flatten().next().copied() else {
            return Ok(self.timeless(proto));
        };
        if let Some(back) = proto.input.iter().find(|name| self.closed.contains(*name)) {
            return Err(Error::model(format!(
                "joins `{back}`, which was made of the whole window, with what still has a time axis: each of its columns \
                 depends on all of time, so nothing can be computed before the window is complete; use mode dense"
            )));
        }
        let x = self.tensors[first].clone();
        if x.shape[0] != 1 && x.axis != 0 {
            return Err(Error::model(format!("has a batch of {}; only 1 is streamed", x.shape[0])));
        }
        let (rule, outputs, macs) = match proto.op_type.as_str() {
            "Conv" => self.convolution(&mut proto, &inputs, &x)?,
            "MaxPool" | "AveragePool" | "LpPool" => self.pool(&mut proto, &inputs, &x)?,
            "GlobalAveragePool" | "GlobalMaxPool" => (close(&x, proto.op_type == "GlobalAveragePool"), vec![], 0),
            "Flatten" => (close(&x, false), vec![], 0),
            "Reshape" => self.reshape(&proto, &x)?,
            "Squeeze" | "Unsqueeze" => self.squeeze(&proto, &x)?,
            "ReduceMean" | "ReduceMax" | "ReduceSum" | "ReduceMin" | "ReduceL2" => self.reduce(&proto, &x)?,
            "Pad" => self.pad(&proto, &x)?,
            "Concat" => self.concat(&proto, &inputs, &x)?,
            "Split" => self.split(&proto, &x)?,
            "Transpose" => {
                let rank = x.shape.len();
                let perm: Vec<usize> = match ints(&proto, "perm") {
                    Some(perm) => perm.iter().map(|&p| p as usize).collect(),
                    None => (0..rank).rev().collect(),
                };
                if perm.len() != rank || (0..rank).any(|i| !perm.contains(&i)) {
                    return Err(Error::model(format!("permutes {rank} axes by {perm:?}")));
                }
                let shape = perm.iter().map(|&p| x.shape[p]).collect();
                let axis = perm.iter().position(|&p| p == x.axis).unwrap_or(0);
                (Rule::Pointwise, vec![Tensor { shape, axis, ..x }], 0)
            }
            "Softmax" | "LogSoftmax" => {
                // Before opset 13 it normalises over all axes from that one on, taken together.
                let together = self.opset < 13;
                let axis = wrapped(int(&proto, "axis").unwrap_or(if together { 1 } else { -1 }), x.shape.len())?;
                if together && axis < x.axis {
                    return Err(self.mixes(&format!(
                        "normalises over all axes from {axis} on, time among them, as it does before opset 13 (this graph \
                         is of {}; from 13 on it is over one axis: export it anew if that is what is meant)",
                        self.opset
                    )));
                }
                if axis == x.axis {
                    return Err(self.mixes("normalises over time"));
                }
                (Rule::Pointwise, vec![x], 0)
            }
            "MatMul" => self.matmul(&proto, &inputs, &x)?,
            op if ELEMENTWISE.contains(&op) => self.elementwise(&proto, &inputs, &x)?,
            op => {
                return Err(Error::model(format!(
                    "there is no rule for {op} on a tensor with a time axis; put it behind the pooling over time, \
                     replace it with convolutions, pools and elementwise operators, or use mode dense"
                )));
            }
        };
        let outputs = match rule {
            Rule::Close { .. } => {
                self.closed.extend(proto.output.iter().filter(|n| !n.is_empty()).cloned());
                Vec::new()
            }
            _ => {
                let mut ids = Vec::new();
                for (name, tensor) in proto.output.iter().zip(outputs) {
                    if tensor.shape.contains(&0) {
                        return Err(Error::model(format!("gives an empty tensor, {:?}", tensor.shape)));
                    }
                    self.ids.insert(name.clone(), self.tensors.len());
                    ids.push(self.tensors.len());
                    self.tensors.push(Tensor { name: name.clone(), ..tensor });
                }
                ids
            }
        };
        Ok(Node { proto, rule, inputs, outputs, macs })
    }

    /// A node of constants, or of what lies behind the pooling over time: it stays as it is.
    fn timeless(&mut self, proto: NodeProto) -> Node {
        let behind = proto.input.iter().any(|name| self.closed.contains(name));
        let mut macs = 0;
        if behind {
            if let Some(Some(weight)) = proto.input.get(1).and_then(|w| self.constants.get(w))
                && matches!(proto.op_type.as_str(), "Gemm" | "MatMul" | "Conv")
            {
                macs = weight.shape.iter().product::<usize>() as u64;
            }
            self.closed.extend(proto.output.iter().filter(|n| !n.is_empty()).cloned());
        } else {
            let known = match proto.op_type.as_str() {
                // Of the same shape as what they read, and of no value that is needed here.
                "DequantizeLinear" | "QuantizeLinear" | "Identity" | "Cast" => {
                    let of = proto.input.first().and_then(|name| self.constants.get(name)).cloned().flatten();
                    of.map(|c| Constant { value: if proto.op_type == "Identity" { c.value } else { None }, ..c })
                }
                _ => None,
            };
            let first = proto.output.first().cloned();
            self.constants.extend(proto.output.iter().filter(|n| !n.is_empty()).map(|n| (n.clone(), None)));
            if let (Some(name), Some(known)) = (first, known) {
                self.constants.insert(name, Some(known));
            }
        }
        Node { proto, rule: Rule::Timeless, inputs: Vec::new(), outputs: Vec::new(), macs }
    }

    fn mixes(&self, what: &str) -> Error {
        Error::model(format!(
            "{what} in the middle of the network: each of its columns depends on all of time, so nothing can be computed \
             before the window is complete; use mode dense"
        ))
    }

    fn constant(&self, name: &str) -> Option<&Constant<'a>> {
        self.constants.get(name).and_then(Option::as_ref)
    }

    fn integers(&self, name: &str) -> Result<Vec<i64>> {
        let value = self.constant(name).and_then(|c| c.value).ok_or_else(|| {
            Error::model(format!("takes `{name}` from a computation; shapes and axes must be constants"))
        })?;
        int64s(value).ok_or_else(|| Error::model(format!("`{name}` does not hold integers")))
    }

    /// Axes from the attribute (older opsets) or from input number `at`.
    fn axes(&self, proto: &NodeProto, at: usize, rank: usize) -> Result<Option<Vec<usize>>> {
        let axes = match (ints(proto, "axes"), proto.input.get(at).filter(|n| !n.is_empty())) {
            (Some(axes), _) => axes,
            (None, Some(name)) => self.integers(name)?,
            (None, None) => return Ok(None),
        };
        axes.into_iter().map(|a| wrapped(a, rank)).collect::<Result<Vec<_>>>().map(Some)
    }

    fn only_first(&self, inputs: &[Option<Id>]) -> Result<()> {
        if inputs.iter().skip(1).any(Option::is_some) {
            return Err(Error::model("has weights that are computed from the video"));
        }
        Ok(())
    }

    fn convolution(
        &self,
        proto: &mut NodeProto,
        inputs: &[Option<Id>],
        x: &Tensor,
    ) -> Result<(Rule, Vec<Tensor>, u64)> {
        self.only_first(inputs)?;
        let weight = proto.input.get(1).and_then(|w| self.constant(w));
        let Some(weight) = weight.map(|w| w.shape.clone()) else {
            return Err(Error::model("the shape of its weights is not known: they must be stored in the file"));
        };
        if weight.len() != x.shape.len() || weight.len() < 3 {
            return Err(Error::model(format!("has weights {weight:?} for an input of {} axes", x.shape.len())));
        }
        let groups = int(proto, "group").unwrap_or(1).max(1) as usize;
        if weight[1] * groups != x.shape[1] {
            return Err(Error::model(format!(
                "has weights for {} channels, but gets {}",
                weight[1] * groups,
                x.shape[1]
            )));
        }
        if x.axis < 2 {
            return Err(Error::model("convolves with time as its batch or channels"));
        }
        let kernel: Vec<i64> = weight[2..].iter().map(|&n| n as i64).collect();
        let (slide, mut shape) = self.slide(proto, x, &kernel, false)?;
        shape[1] = weight[0];
        let inner = weight[1..].iter().product::<usize>() as u64;
        let macs =
            inner * shape.iter().enumerate().filter(|(i, _)| *i != x.axis).map(|(_, &n)| n as u64).product::<u64>();
        Ok((rule(slide), vec![Tensor { shape, dtype: DataType::Float, ..x.clone() }], macs))
    }

    fn pool(&self, proto: &mut NodeProto, inputs: &[Option<Id>], x: &Tensor) -> Result<(Rule, Vec<Tensor>, u64)> {
        self.only_first(inputs)?;
        if proto.output.len() > 1 {
            return Err(Error::model("gives the places of its maxima too, which is not followed"));
        }
        if x.axis < 2 {
            return Err(Error::model("pools with time as its batch or channels"));
        }
        let kernel = ints(proto, "kernel_shape").ok_or_else(|| Error::model("has no kernel_shape"))?;
        if kernel.len() + 2 != x.shape.len() {
            return Err(Error::model(format!("pools {} axes of an input of {}", kernel.len(), x.shape.len())));
        }
        let ceil = int(proto, "ceil_mode").unwrap_or(0) != 0;
        if ceil && proto.op_type != "MaxPool" {
            return Err(Error::model(
                "averages with ceil_mode, whose last column has a rule of its own; export it without",
            ));
        }
        let (slide, shape) = self.slide(proto, x, &kernel, ceil)?;
        let tensor = Tensor { shape, ..x.clone() };
        // One column that sees no padding: the end of time, whatever it is called.
        let ends = tensor.columns() == 1 && slide.front == 0 && slide.back <= 0 && slide.kernel > 1;
        let to = match (&self.closing, proto.output.first()) {
            (Some(closing), Some(name)) => closing.get(name).map(|left_out| x.columns() - left_out),
            _ => ends.then_some(slide.kernel),
        };
        if let Some(to) = to {
            let mean = proto.op_type == "AveragePool";
            set_ints(proto, "strides", |strides| strides[slide.spatial.0] = 1);
            set_pads(proto, &slide, 0, 0);
            return Ok((Rule::Close { from: to - slide.kernel, to, mean }, vec![], 0));
        }
        Ok((rule(slide), vec![tensor], 0))
    }

    /// Reads kernel, strides, dilations and padding of all spatial axes, writes the padding in numbers, and gives the
    /// time axis's part and the output's shape (channels as the input's).
    fn slide(&self, proto: &mut NodeProto, x: &Tensor, kernel: &[i64], ceil: bool) -> Result<(Slide, Vec<usize>)> {
        let n = kernel.len();
        let ones = vec![1; n];
        let strides = ints(proto, "strides").unwrap_or_else(|| ones.clone());
        let dilations = ints(proto, "dilations").unwrap_or(ones);
        let auto = proto.attribute.iter().find(|a| a.name == "auto_pad").map(|a| a.s.clone()).unwrap_or_default();
        let written = ints(proto, "pads").unwrap_or_else(|| vec![0; 2 * n]);
        if strides.len() != n || dilations.len() != n || written.len() != 2 * n {
            return Err(Error::model(format!("has strides, dilations or pads that do not fit its {n} axes")));
        }
        if kernel.iter().chain(&strides).chain(&dilations).any(|&v| !(1..=1 << 20).contains(&v)) {
            return Err(Error::model("has a kernel, stride or dilation that makes no sense"));
        }
        let mut pads = vec![0; 2 * n];
        let mut shape = x.shape.clone();
        for i in 0..n {
            let size = x.shape[2 + i] as i64;
            let k = (kernel[i] - 1) * dilations[i] + 1;
            let s = strides[i];
            let (front, mut back) = match auto.as_slice() {
                b"SAME_UPPER" | b"SAME_LOWER" => {
                    let total = (((size + s - 1) / s - 1) * s + k - size).max(0);
                    let less = total / 2;
                    if auto == b"SAME_UPPER" { (less, total - less) } else { (total - less, less) }
                }
                b"VALID" => (0, 0),
                b"" | b"NOTSET" => (written[i], written[n + i]),
                other => {
                    return Err(Error::model(format!("has auto_pad {}", String::from_utf8_lossy(other))));
                }
            };
            if !(0..1 << 20).contains(&front) || !(0..1 << 20).contains(&back) {
                return Err(Error::model(format!("has pads {front} and {back}")));
            }
            let mut room = size + front + back - k;
            if room < 0 {
                return Err(Error::model(format!(
                    "has a kernel of {k} for {size} values with {front} and {back} of padding"
                )));
            }
            if ceil && room % s != 0 {
                // The window that hangs over the end is kept unless it begins in the padding.
                let columns = (room + s - 1) / s + 1;
                if (columns - 1) * s < size + front {
                    back += s - room % s;
                    room = size + front + back - k;
                }
            }
            (pads[i], pads[n + i]) = (front, back);
            shape[2 + i] = (room / s + 1) as usize;
        }
        proto.attribute.retain(|a| !matches!(a.name.as_str(), "auto_pad" | "pads" | "ceil_mode"));
        proto.attribute.push(ints_attribute("pads", pads.clone()));
        let t = x.axis - 2;
        let slide = Slide {
            kernel: (kernel[t] - 1) * dilations[t] + 1,
            stride: strides[t],
            front: pads[t],
            back: pads[n + t],
            spatial: (t, n),
        };
        Ok((slide, shape))
    }

    fn reshape(&self, proto: &NodeProto, x: &Tensor) -> Result<(Rule, Vec<Tensor>, u64)> {
        // A reshape mixes axes in an order of its own: it takes the columns of the whole window together, as flattening.
        if let Some(name) = proto.input.get(1) {
            self.integers(name)?;
        }
        Ok((close(x, false), vec![], 0))
    }

    fn squeeze(&self, proto: &NodeProto, x: &Tensor) -> Result<(Rule, Vec<Tensor>, u64)> {
        let unsqueeze = proto.op_type == "Unsqueeze";
        let rank = x.shape.len();
        let axes = match (self.axes(proto, 1, rank + usize::from(unsqueeze))?, unsqueeze) {
            (Some(axes), _) => axes,
            (None, false) => (0..rank).filter(|&i| x.shape[i] == 1).collect(),
            (None, true) => return Err(Error::model("has no axes")),
        };
        if unsqueeze {
            let [at] = axes[..] else { return Err(Error::model("adds more than one axis at once")) };
            let mut shape = x.shape.clone();
            shape.insert(at, 1);
            return Ok((
                Rule::Pointwise,
                vec![Tensor { shape, axis: x.axis + usize::from(at <= x.axis), ..x.clone() }],
                0,
            ));
        }
        if axes.contains(&x.axis) {
            return Ok((close(x, false), vec![], 0));
        }
        let shape = (0..rank).filter(|i| !axes.contains(i)).map(|i| x.shape[i]).collect();
        let axis = x.axis - axes.iter().filter(|&&a| a < x.axis).count();
        Ok((Rule::Pointwise, vec![Tensor { shape, axis, ..x.clone() }], 0))
    }

    fn reduce(&self, proto: &NodeProto, x: &Tensor) -> Result<(Rule, Vec<Tensor>, u64)> {
        let rank = x.shape.len();
        let axes = self.axes(proto, 1, rank)?.filter(|a| !a.is_empty()).unwrap_or_else(|| (0..rank).collect());
        if axes.contains(&x.axis) {
            return Ok((close(x, proto.op_type == "ReduceMean"), vec![], 0));
        }
        let keep = int(proto, "keepdims").unwrap_or(1) != 0;
        let shape = (0..rank).filter(|i| keep || !axes.contains(i));
        let shape = shape.map(|i| if axes.contains(&i) { 1 } else { x.shape[i] }).collect();
        let axis = if keep { x.axis } else { x.axis - axes.iter().filter(|&&a| a < x.axis).count() };
        Ok((Rule::Pointwise, vec![Tensor { shape, axis, ..x.clone() }], 0))
    }

    fn pad(&self, proto: &NodeProto, x: &Tensor) -> Result<(Rule, Vec<Tensor>, u64)> {
        let mode = proto.attribute.iter().find(|a| a.name == "mode").map(|a| a.s.as_slice()).unwrap_or(b"constant");
        let rank = x.shape.len();
        let pads = match (ints(proto, "pads"), proto.input.get(1)) {
            (Some(_), _) => return Err(Error::model("is of an opset before 11; export the model with a newer one")),
            (None, Some(name)) => self.integers(name)?,
            (None, None) => return Err(Error::model("has no pads")),
        };
        if proto.input.len() > 3 || pads.len() != 2 * rank {
            return Err(Error::model(format!("has {} pads for {rank} axes", pads.len())));
        }
        if pads.iter().any(|p| !(0..1 << 20).contains(p)) {
            return Err(Error::model("cuts off instead of padding"));
        }
        let (front, back) = (pads[x.axis], pads[rank + x.axis]);
        if mode != b"constant" && (front, back) != (0, 0) {
            return Err(Error::model(format!(
                "pads time by {}; only constants are streamed",
                String::from_utf8_lossy(mode)
            )));
        }
        let shape = (0..rank).map(|i| x.shape[i] + (pads[i] + pads[rank + i]) as usize).collect();
        let slide = Slide { kernel: 1, stride: 1, front, back, spatial: (x.axis, rank) };
        Ok((rule(slide), vec![Tensor { shape, ..x.clone() }], 0))
    }

    fn concat(&self, proto: &NodeProto, inputs: &[Option<Id>], x: &Tensor) -> Result<(Rule, Vec<Tensor>, u64)> {
        let axis = wrapped(int(proto, "axis").ok_or_else(|| Error::model("has no axis"))?, x.shape.len())?;
        if axis == x.axis {
            return Err(Error::model("joins tensors one behind the other in time, which is not followed"));
        }
        let mut shape = x.shape.clone();
        shape[axis] = 0;
        for (input, name) in inputs.iter().zip(&proto.input) {
            let Some(id) = input else {
                return Err(Error::model(format!("joins the constant `{name}` to what has a time axis")));
            };
            let other = &self.tensors[*id];
            let fits = other.shape.len() == shape.len()
                && other.axis == x.axis
                && (0..shape.len()).all(|i| i == axis || other.shape[i] == x.shape[i]);
            if !fits {
                return Err(Error::model(format!("joins {:?} to {:?}", other.shape, x.shape)));
            }
            shape[axis] += other.shape[axis];
        }
        Ok((Rule::Pointwise, vec![Tensor { shape, ..x.clone() }], 0))
    }

    fn split(&self, proto: &NodeProto, x: &Tensor) -> Result<(Rule, Vec<Tensor>, u64)> {
        let axis = wrapped(int(proto, "axis").unwrap_or(0), x.shape.len())?;
        if axis == x.axis {
            return Err(Error::model("splits time, which is not followed"));
        }
        let n = proto.output.len();
        let sizes: Vec<i64> = match (ints(proto, "split"), proto.input.get(1).filter(|n| !n.is_empty())) {
            (Some(sizes), _) => sizes,
            (None, Some(name)) => self.integers(name)?,
            (None, None) => vec![x.shape[axis].div_ceil(n) as i64; n],
        };
        if sizes.iter().any(|&s| s < 1) || sizes.len() != n || sizes.iter().sum::<i64>() != x.shape[axis] as i64 {
            return Err(Error::model(format!("splits {} into {sizes:?}", x.shape[axis])));
        }
        let parts = sizes.iter().map(|&size| {
            let mut shape = x.shape.clone();
            shape[axis] = size as usize;
            Tensor { shape, ..x.clone() }
        });
        Ok((Rule::Pointwise, parts.collect(), 0))
    }

    fn matmul(&self, proto: &NodeProto, inputs: &[Option<Id>], x: &Tensor) -> Result<(Rule, Vec<Tensor>, u64)> {
        self.only_first(inputs)?;
        let weight = proto.input.get(1).and_then(|w| self.constant(w)).map(|w| w.shape.clone());
        let last = x.shape.len() - 1;
        match weight.as_deref() {
            Some(&[k, n]) if k == x.shape[last] && x.axis != last => {
                let mut shape = x.shape.clone();
                shape[last] = n;
                let rows: usize = (0..last).filter(|&i| i != x.axis).map(|i| x.shape[i]).product();
                let macs = (rows * k * n) as u64;
                Ok((Rule::Pointwise, vec![Tensor { shape, dtype: DataType::Float, ..x.clone() }], macs))
            }
            _ => Err(Error::model(
                "multiplies what has a time axis by something else than a stored matrix of channels; attention over time \
                 needs the whole window: use mode dense",
            )),
        }
    }

    fn elementwise(&self, proto: &NodeProto, inputs: &[Option<Id>], x: &Tensor) -> Result<(Rule, Vec<Tensor>, u64)> {
        let op = proto.op_type.as_str();
        if op == "BatchNormalization" && x.axis == 1 {
            return Err(Error::model("normalises with time as its channels"));
        }
        let per_axis = matches!(op, "QuantizeLinear" | "DequantizeLinear" | "BatchNormalization");
        if matches!(op, "QuantizeLinear" | "DequantizeLinear")
            && let Some(scale) = proto.input.get(1).and_then(|s| self.constant(s))
            && scale.shape.iter().product::<usize>() > 1
            && wrapped(int(proto, "axis").unwrap_or(1), x.shape.len())? == x.axis
        {
            return Err(Error::model("has a scale for each moment in time"));
        }
        let mut shape = x.shape.clone();
        for (at, name) in proto.input.iter().enumerate().filter(|(_, n)| !n.is_empty()) {
            if let Some(id) = inputs[at] {
                let other = &self.tensors[id];
                if other.shape.len() != shape.len() || other.axis != x.axis || other.columns() != x.columns() {
                    return Err(Error::model(format!("joins {:?} with {:?}", x.shape, other.shape)));
                }
                for (a, b) in shape.iter_mut().zip(&other.shape) {
                    if *a != *b && *a != 1 && *b != 1 {
                        return Err(Error::model(format!("joins {:?} with {:?}", x.shape, other.shape)));
                    }
                    *a = (*a).max(*b);
                }
                continue;
            }
            if per_axis || matches!(op, "Clip" | "Dropout") {
                continue;
            }
            let Some(constant) = self.constant(name) else {
                return Err(Error::model(format!("the shape of `{name}` is not known: it must be stored in the file")));
            };
            // Broadcasting aligns the last axes.
            let ahead = shape.len().checked_sub(constant.shape.len());
            let Some(ahead) = ahead else {
                return Err(Error::model(format!("joins {:?} with a constant {:?}", x.shape, constant.shape)));
            };
            for (i, &n) in constant.shape.iter().enumerate() {
                let a = &mut shape[ahead + i];
                if ahead + i == x.axis && n != 1 {
                    return Err(Error::model(format!(
                        "joins a constant that differs from column to column (`{name}`, {:?}), such as an embedding of \
                         time's positions: a column that moves through the window would change; use mode dense",
                        constant.shape
                    )));
                }
                if *a != n && *a != 1 && n != 1 {
                    return Err(Error::model(format!("joins {:?} with a constant {:?}", x.shape, constant.shape)));
                }
                *a = (*a).max(n);
            }
        }
        let dtype = match op {
            "QuantizeLinear" => {
                let zero = proto.input.get(2).and_then(|z| self.constant(z)).map(|z| z.dtype);
                zero.and_then(|t| DataType::try_from(t).ok()).unwrap_or(DataType::Uint8)
            }
            "DequantizeLinear" => DataType::Float,
            "Cast" => int(proto, "to").and_then(|t| DataType::try_from(t as i32).ok()).unwrap_or(x.dtype),
            _ => x.dtype,
        };
        // Dropout's mask and batch norm's running values are of no use at inference.
        Ok((Rule::Pointwise, vec![Tensor { shape, dtype, ..x.clone() }], 0))
    }
}

fn rule(slide: Slide) -> Rule {
    let Slide { kernel, stride, front, back, .. } = slide;
    if (kernel, stride, front, back) == (1, 1, 0, 0) { Rule::Pointwise } else { Rule::Slide(slide) }
}

fn close(x: &Tensor, mean: bool) -> Rule {
    Rule::Close { from: 0, to: x.columns(), mean }
}

fn wrapped(axis: i64, rank: usize) -> Result<usize> {
    let at = if axis < 0 { axis + rank as i64 } else { axis };
    if (0..rank as i64).contains(&at) {
        Ok(at as usize)
    } else {
        Err(Error::model(format!("names axis {axis} of a tensor of {rank}")))
    }
}

pub(super) fn ints(node: &NodeProto, name: &str) -> Option<Vec<i64>> {
    node.attribute.iter().find(|a| a.name == name).map(|a| a.ints.clone())
}

pub(super) fn int(node: &NodeProto, name: &str) -> Option<i64> {
    node.attribute.iter().find(|a| a.name == name).map(|a| a.i)
}

pub(super) fn ints_attribute(name: &str, ints: Vec<i64>) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Ints as i32, ints, ..AttributeProto::default() }
}

fn set_ints(node: &mut NodeProto, name: &str, change: impl FnOnce(&mut Vec<i64>)) {
    if let Some(a) = node.attribute.iter_mut().find(|a| a.name == name) {
        change(&mut a.ints);
    }
}

/// Sets the time axis's padding of a convolution or pool.
pub(super) fn set_pads(node: &mut NodeProto, slide: &Slide, front: i64, back: i64) {
    let (t, n) = slide.spatial;
    set_ints(node, "pads", |pads| (pads[t], pads[n + t]) = (front, back));
}

pub(super) fn int64s(tensor: &TensorProto) -> Option<Vec<i64>> {
    match DataType::try_from(tensor.data_type).ok()? {
        DataType::Int64 if !tensor.int64_data.is_empty() => Some(tensor.int64_data.clone()),
        DataType::Int64 => Some(
            tensor.raw_data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap_or_default())).collect(),
        ),
        DataType::Int32 if !tensor.int32_data.is_empty() => Some(tensor.int32_data.iter().map(|&v| v.into()).collect()),
        DataType::Int32 => Some(
            tensor
                .raw_data
                .chunks_exact(4)
                .map(|b| i32::from_le_bytes(b.try_into().unwrap_or_default()).into())
                .collect(),
        ),
        _ => None,
    }
}
