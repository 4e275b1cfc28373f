//! Quantized graphs as backends for x86 processors compute them in integers.
//!
//! TensorRT wants activations quantized symmetrically, as s8 with zero in the middle, and that is how models come. The
//! instructions of x86 multiply unsigned by signed bytes, and what is built on them goes wrong or slow with signed ones:
//! OpenVINO (2024.6 to 2026.0, on a processor with VNNI and without AMX) rounds some of what is concatenated before a
//! convolution to whole numbers, which costs the default model 0.6 to 1.2 of a logit; ONNX Runtime's CPU provider takes
//! the convolutions for those of floats, whose sums depend on the number of columns. What comes out of a ReLU is never
//! negative: as u8 with the same scale it is the same numbers, and twice as much fits above before it saturates.

use std::collections::{HashMap, HashSet};

use prost::Message;
use tract_onnx::pb::{GraphProto, ModelProto, TensorProto, tensor_proto::DataType};

/// The graph with what is never negative quantized as u8. None where there is nothing of the kind.
pub(super) fn unsigned(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut model = ModelProto::decode(bytes).ok()?;
    make_unsigned(model.graph.as_mut()?).then(|| model.encode_to_vec())
}

fn make_unsigned(graph: &mut GraphProto) -> bool {
    let zero = |t: &&TensorProto| {
        let all = t.raw_data.iter().all(|b| *b == 0) && t.int32_data.iter().all(|v| *v == 0);
        t.data_type == DataType::Int8 as i32 && t.dims.iter().product::<i64>() == 1 && all
    };
    let zeros: HashMap<String, Vec<i64>> =
        graph.initializer.iter().filter(zero).map(|t| (t.name.clone(), t.dims.clone())).collect();
    let symmetric = |zero: Option<&String>| zero.is_some_and(|name| zeros.contains_key(name));
    // Who reads each tensor, and whether anything but the way back to floats does.
    let mut readers: HashMap<&str, (Vec<usize>, bool)> = HashMap::new();
    for (n, node) in graph.node.iter().enumerate() {
        for (at, name) in node.input.iter().enumerate() {
            let reader = readers.entry(name).or_default();
            reader.0.push(n);
            reader.1 |= at != 0 || node.op_type != "DequantizeLinear" || !symmetric(node.input.get(2));
        }
    }
    for output in &graph.output {
        readers.entry(&output.name).or_default().1 = true;
    }
    // In a file nodes stand behind what they read.
    let mut never_negative: HashSet<&str> = HashSet::new();
    let mut nodes = Vec::new();
    for (n, node) in graph.node.iter().enumerate() {
        let (Some(first), Some(output)) = (node.input.first(), node.output.first()) else { continue };
        let is = |name: &String| never_negative.contains(name.as_str());
        let so = match node.op_type.as_str() {
            "Relu" => true,
            "MaxPool" | "AveragePool" | "Identity" | "Dropout" | "Transpose" | "DequantizeLinear" => is(first),
            "QuantizeLinear" => {
                let so = is(first) && symmetric(node.input.get(2));
                if so && let Some((all, false)) = readers.get(output.as_str()) {
                    nodes.push(n);
                    nodes.extend(all);
                }
                so
            }
            "Concat" => node.input.iter().all(is),
            _ => false,
        };
        if so {
            never_negative.insert(output);
        }
    }
    let mut made = HashSet::new();
    for n in &nodes {
        let node = &mut graph.node[*n];
        let name = format!("{}/unsigned", node.input[2]);
        if made.insert(name.clone()) {
            let dims = zeros.get(&node.input[2]).cloned().unwrap_or_default();
            let (data_type, raw_data) = (DataType::Uint8 as i32, vec![0]);
            graph.initializer.push(TensorProto { name: name.clone(), data_type, dims, raw_data, ..Default::default() });
        }
        node.input[2] = name;
        let types: HashSet<&String> = node.output.iter().collect();
        graph.value_info.retain(|v| !types.contains(&v.name));
    }
    !nodes.is_empty()
}

#[cfg(test)]
mod tests {
    use tract_onnx::pb::{NodeProto, ValueInfoProto};

    use super::*;

    type Node = (&'static str, &'static [&'static str], &'static str);

    /// Nodes `(op, inputs, output)` in order, with a scale and zeros of three kinds; the last one's output is the graph's.
    fn graph(nodes: &[(&str, &[&str], &str)]) -> ModelProto {
        let strings = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
        let node = |(op, inputs, output): &(&str, &[&str], &str)| NodeProto {
            op_type: op.to_string(),
            input: strings(inputs),
            output: strings(&[output]),
            ..Default::default()
        };
        let number = |name: &str, dtype: DataType, bytes: &[u8]| TensorProto {
            name: name.to_string(),
            data_type: dtype as i32,
            raw_data: bytes.to_vec(),
            ..Default::default()
        };
        let named = |name: &str| ValueInfoProto { name: name.to_string(), ..Default::default() };
        let graph = GraphProto {
            node: nodes.iter().map(node).collect(),
            initializer: vec![
                number("scale", DataType::Float, &0.5f32.to_le_bytes()),
                number("zero", DataType::Int8, &[0]),
                number("half", DataType::Int8, &[64]),
                number("u8", DataType::Uint8, &[0]),
            ],
            output: nodes.last().map(|(_, _, output)| named(output)).into_iter().collect(),
            value_info: nodes.iter().map(|(_, _, output)| named(output)).collect(),
            ..Default::default()
        };
        ModelProto { graph: Some(graph), ..Default::default() }
    }

    /// Which quantized tensors are u8 then; each with the nodes that read it.
    fn made(model: &ModelProto) -> Vec<String> {
        let Some(bytes) = unsigned(&model.encode_to_vec()) else { return Vec::new() };
        let graph = ModelProto::decode(bytes.as_slice()).unwrap().graph.unwrap();
        let zero = graph.initializer.iter().find(|t| t.name == "zero/unsigned").unwrap();
        assert_eq!((zero.data_type, zero.raw_data.as_slice()), (DataType::Uint8 as i32, &[0u8][..]));
        assert_eq!(graph.initializer.iter().filter(|t| t.name == zero.name).count(), 1);
        let changed = graph.node.iter().filter(|n| n.input.get(2) == Some(&zero.name));
        changed.map(|n| n.output[0].clone()).collect()
    }

    #[test]
    fn what_comes_out_of_a_relu_is_unsigned_through_pools_and_concatenations() {
        let model = graph(&[
            ("QuantizeLinear", &["x", "scale", "zero"], "in"),
            ("DequantizeLinear", &["in", "scale", "zero"], "in/float"),
            ("Conv", &["in/float", "w"], "c"),
            ("Relu", &["c"], "r"),
            ("QuantizeLinear", &["r", "scale", "zero"], "q"),
            ("DequantizeLinear", &["q", "scale", "zero"], "d"),
            ("MaxPool", &["d"], "p"),
            ("Concat", &["d", "p"], "j"),
            ("QuantizeLinear", &["j", "scale", "zero"], "q2"),
            ("DequantizeLinear", &["q2", "scale", "zero"], "d2"),
            ("DequantizeLinear", &["q2", "scale", "zero"], "d3"),
            ("Conv", &["d2", "w"], "c2"),
            ("QuantizeLinear", &["c2", "scale", "zero"], "q3"),
            ("DequantizeLinear", &["q3", "scale", "zero"], "d4"),
            ("Concat", &["d3", "d4"], "out"),
        ]);
        // The input and a convolution without a ReLU have negative numbers.
        assert_eq!(made(&model), ["q", "d", "q2", "d2", "d3"]);
    }

    #[test]
    fn what_is_read_as_signed_numbers_stays_signed() {
        let model = |zeros: [&'static str; 2], rest: &[Node]| {
            let (q, d) = (["r", "scale", zeros[0]], ["q", "scale", zeros[1]]);
            let mut nodes: Vec<(&str, &[&str], &str)> =
                vec![("Relu", &["x"], "r"), ("QuantizeLinear", &q, "q"), ("DequantizeLinear", &d, "d")];
            nodes.extend(rest);
            graph(&nodes)
        };
        assert_eq!(made(&model(["zero", "zero"], &[])), ["q", "d"]);
        for zeros in [["half", "half"], ["u8", "u8"], ["computed", "computed"], ["zero", "half"]] {
            assert!(made(&model(zeros, &[])).is_empty(), "{zeros:?}");
        }
        // A pool of the integers themselves, and a state that the next hop gets.
        let pool: Node = ("MaxPool", &["q"], "p");
        assert!(made(&model(["zero", "zero"], &[pool])).is_empty());
        let mut told = model(["zero", "zero"], &[]);
        let q = ValueInfoProto { name: "q".into(), ..Default::default() };
        told.graph.as_mut().unwrap().output.push(q);
        assert!(made(&told).is_empty());
        // Of two that are joined one has negative numbers.
        let joined: [Node; 2] = [("Concat", &["d", "x"], "j"), ("QuantizeLinear", &["j", "scale", "zero"], "q2")];
        assert_eq!(made(&model(["zero", "zero"], &joined)), ["q", "d"]);
    }

    #[test]
    fn nonsense_is_left_as_it_is() {
        assert!(unsigned(b"no graph").is_none());
        assert!(unsigned(&ModelProto::default().encode_to_vec()).is_none());
        // A loop, nodes without inputs, and a quantization that nobody reads.
        assert!(made(&graph(&[("Relu", &["q"], "r"), ("QuantizeLinear", &[], "q"), ("Relu", &[], "e")])).is_empty());
        let unread =
            graph(&[("Relu", &["x"], "r"), ("QuantizeLinear", &["r", "scale", "zero"], "q"), ("Relu", &["x"], "e")]);
        assert!(made(&unread).is_empty());
    }
}
