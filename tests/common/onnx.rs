//! Writes small ONNX models and model folders for tests: no Python, random weights from a fixed seed.

use std::{fs, path::Path};

use prost::Message;
use sha2::{Digest, Sha256};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_proto::DataType, tensor_shape_proto, type_proto,
};

/// A small generator (SplitMix64), so that weights and inputs are the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Within -1..1.
    pub fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

/// A dimension of an input or output: a size, or a name.
#[derive(Clone, Copy)]
pub enum Dim {
    N(i64),
    T(&'static str),
}

pub enum Attribute<'a> {
    Int(i64),
    Ints(&'a [i64]),
    Text(&'a str),
}

/// A graph in the making. Each operator's method returns the name of its output.
pub struct Graph {
    proto: GraphProto,
    pub random: Random,
    names: usize,
    /// Whether activations and weights of convolutions pass through a pair of QuantizeLinear and DequantizeLinear.
    pub quantized: bool,
    pub opset: i64,
}

impl Graph {
    pub fn new(seed: u64) -> Self {
        let proto = GraphProto { name: "test".into(), ..GraphProto::default() };
        Graph { proto, random: Random(seed), names: 0, quantized: false, opset: 17 }
    }

    pub fn input(&mut self, name: &str, dtype: DataType, dims: &[Dim]) -> String {
        self.proto.input.push(value(name, dtype, dims));
        name.into()
    }

    /// Gives `from` the name `name` and makes it an output.
    pub fn output(&mut self, from: &str, name: &str, dims: &[Dim]) {
        self.proto.output.push(value(name, DataType::Float, dims));
        self.proto.node.push(node("Identity", &[from], name, &[]));
    }

    pub fn op(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        self.names += 1;
        let name = format!("{op}_{}", self.names);
        self.proto.node.push(node(op, inputs, &name, attributes));
        name
    }

    /// An operator of more than one output, whose names the caller gives.
    pub fn op_into(&mut self, op: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, Attribute)]) {
        let mut made = node(op, inputs, outputs[0], attributes);
        made.output = outputs.iter().map(|o| o.to_string()).collect();
        self.proto.node.push(made);
    }

    pub fn floats(&mut self, dims: &[usize], values: &[f32]) -> String {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(DataType::Float, dims, raw)
    }

    pub fn ints(&mut self, values: &[i64]) -> String {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(DataType::Int64, &[values.len()], raw)
    }

    fn constant(&mut self, dtype: DataType, dims: &[usize], raw_data: Vec<u8>) -> String {
        self.names += 1;
        let name = format!("constant_{}", self.names);
        self.proto.initializer.push(TensorProto {
            name: name.clone(),
            data_type: dtype as i32,
            dims: dims.iter().map(|&d| d as i64).collect(),
            raw_data,
            ..TensorProto::default()
        });
        name
    }

    /// Random weights of the size that keeps activations at about the size of their inputs.
    pub fn weights(&mut self, dims: &[usize]) -> String {
        let fan_in: usize = dims[1..].iter().product();
        let scale = (3.0 / fan_in as f32).sqrt();
        let values: Vec<f32> = self.random.floats(dims.iter().product()).iter().map(|v| v * scale).collect();
        self.floats(dims, &values)
    }

    pub fn convolution(
        &mut self,
        x: &str,
        [c_in, c_out]: [usize; 2],
        k: [usize; 3],
        more: &[(&str, Attribute)],
    ) -> String {
        let dims = [c_out, c_in, k[0], k[1], k[2]];
        let bias: Vec<f32> = self.random.floats(c_out).iter().map(|v| v * 0.1).collect();
        let (x, w) = if self.quantized {
            let x = self.fake_quantized(x, 4.0 / 127.0);
            // Quantized weights are stored as int8, as quantize_static does.
            let scale = (3.0 / (c_in * k.iter().product::<usize>()) as f32).sqrt() / 127.0;
            let count = dims.iter().product();
            let raw = self.random.floats(count).iter().map(|v| (v * 127.0).round() as i8 as u8).collect();
            let q = self.constant(DataType::Int8, &dims, raw);
            let scale = self.floats(&[], &[scale]);
            let zero = self.constant(DataType::Int8, &[], vec![0]);
            (x, self.op("DequantizeLinear", &[&q, &scale, &zero], &[]))
        } else {
            (x.to_owned(), self.weights(&dims))
        };
        let b = self.floats(&[c_out], &bias);
        self.op("Conv", &[&x, &w, &b], more)
    }

    pub fn fake_quantized(&mut self, x: &str, scale: f32) -> String {
        let scale = self.floats(&[], &[scale]);
        let zero = self.constant(DataType::Int8, &[], vec![0]);
        let q = self.op("QuantizeLinear", &[x, &scale, &zero], &[]);
        self.op("DequantizeLinear", &[&q, &scale, &zero], &[])
    }

    pub fn relu(&mut self, x: &str) -> String {
        self.op("Relu", &[x], &[])
    }

    pub fn bytes(self) -> Vec<u8> {
        ModelProto {
            ir_version: 8,
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: self.opset }],
            graph: Some(self.proto),
            ..ModelProto::default()
        }
        .encode_to_vec()
    }
}

fn value(name: &str, dtype: DataType, dims: &[Dim]) -> ValueInfoProto {
    let dim = dims.iter().map(|dim| tensor_shape_proto::Dimension {
        value: Some(match dim {
            Dim::N(n) => tensor_shape_proto::dimension::Value::DimValue(*n),
            Dim::T(name) => tensor_shape_proto::dimension::Value::DimParam(name.to_string()),
        }),
        ..tensor_shape_proto::Dimension::default()
    });
    let tensor = type_proto::Tensor { elem_type: dtype as i32, shape: Some(TensorShapeProto { dim: dim.collect() }) };
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }
}

fn node(op: &str, inputs: &[&str], output: &str, attributes: &[(&str, Attribute)]) -> NodeProto {
    let attribute = attributes.iter().map(|(name, value)| {
        let mut proto = AttributeProto { name: name.to_string(), ..AttributeProto::default() };
        match value {
            Attribute::Int(i) => (proto.i, proto.r#type) = (*i, AttributeType::Int as i32),
            Attribute::Ints(ints) => (proto.ints, proto.r#type) = (ints.to_vec(), AttributeType::Ints as i32),
            Attribute::Text(text) => (proto.s, proto.r#type) = (text.as_bytes().into(), AttributeType::String as i32),
        }
        proto
    });
    NodeProto {
        op_type: op.into(),
        name: format!("{op}:{output}"),
        input: inputs.iter().map(|i| i.to_string()).collect(),
        output: vec![output.into()],
        attribute: attribute.collect(),
        ..NodeProto::default()
    }
}

/// A stream's file: its precision, name and bytes.
pub type File<'a> = (&'a str, &'a str, &'a [u8]);

/// A [[stream]] table without its files, and its files.
pub type Stream<'a> = (&'a str, Vec<File<'a>>);

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes a model folder.
pub fn write_model(folder: &Path, labels: usize, streams: &[Stream]) {
    let mut manifest = String::from(
        "name = \"test\"\nversion = \"1\"\narchitecture = \"test\"\nlicence = \"MIT\"\nsource = \"tests\"\nfps = 25\n\
         labels = \"labels.txt\"\n[fusion]\nrule = \"probabilities\"\n",
    );
    for (stream, files) in streams {
        manifest += &format!("[[stream]]\n{stream}\n");
        for (precision, name, bytes) in files {
            fs::write(folder.join(name), bytes).unwrap();
            let sha = sha256(bytes);
            manifest +=
                &format!("[[stream.file]]\nprecision = \"{precision}\"\npath = \"{name}\"\nsha256 = \"{sha}\"\n");
        }
    }
    fs::write(folder.join("model.toml"), manifest).unwrap();
    let labels: String = (0..labels).map(|i| format!("label {i}\n")).collect();
    fs::write(folder.join("labels.txt"), labels).unwrap();
}

/// A model whose first label is a bright picture, and whose second is a dark one.
#[allow(dead_code)]
pub fn write_brightness(folder: &Path) {
    fs::create_dir_all(folder).expect("a folder");
    let mut g = Graph::new(1);
    let x = g.input("input", DataType::Float, &[1, 3, 16, 8, 8].map(Dim::N));
    let axes = [1, 2, 3, 4];
    let mean = g.op("ReduceMean", &[&x], &[("axes", Attribute::Ints(&axes)), ("keepdims", Attribute::Int(0))]);
    let shape = g.ints(&[1, 1]);
    let mean = g.op("Reshape", &[&mean, &shape], &[]);
    let weights = g.floats(&[1, 2], &[10.0, -10.0]);
    let logits = g.op("MatMul", &[&mean, &weights], &[]);
    g.output(&logits, "logits", &[Dim::N(1), Dim::N(2)]);
    let stream = "name = \"rgb\"\nkind = \"rgb\"\nframes = 16\nsize = [8, 8]\nfit = \"squeeze\"\nlayout = \"NCTHW\"\n\
                  input = \"input\"\noutput = \"logits\"\ndtype = \"f32\"\nrange = [-1.0, 1.0]";
    write_model(folder, 2, &[(stream, vec![("f32", "rgb.onnx", &g.bytes())])]);
}
