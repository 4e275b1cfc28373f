//! The network's first step made cheap: a quantized graph takes its input as the integers that it would quantize it to,
//! and squares of pixels as channels.
//!
//! Frames are bytes in the ring. A graph that begins with QuantizeLinear would be handed floats four times that size only
//! to round them; here whoever fills the input rounds, by the same rule, and the graph begins behind that node.
//!
//! I3D's first convolution has three channels (two, of flow), and hardware multiplies 4, 16 or 64 at a time: most of it
//! idles. A convolution with a stride of 2 is one with a stride of 1 on an input whose 2 x 2 squares of pixels have become
//! channels, with the weights put in other places and zeros between (space-to-depth). The sums are of the same integers:
//! every number behind it stays as it was, to the last bit. On a processor with AMX (OpenVINO 2025, one hop of I3D's RGB
//! stem, 2 cores) that takes 7 ms instead of 65.

use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, TensorProto, tensor_proto::DataType};

use super::{
    Packed,
    dense::{int, ints, ints_attribute},
};

/// Changes a graph so that it takes its input packed, where it can; `shape` becomes the packed input's.
pub(super) fn pack(model: &mut ModelProto, input: &str, shape: &mut [usize], axis: usize) -> Option<Packed> {
    let graph = model.graph.as_mut()?;
    // [1, C, T, H, W]
    if shape.len() != 5 || axis != 2 || graph.output.iter().any(|v| v.name == input) {
        return None;
    }
    let quantize = only_reader(graph, input)?;
    if graph.node[quantize].op_type != "QuantizeLinear" || graph.node[quantize].output.len() != 1 {
        return None;
    }
    let scale = scalar(graph, graph.node[quantize].input.get(1)?)?;
    let zero = initializer(graph, graph.node[quantize].input.get(2)?)?;
    let is_zero = zero.raw_data.iter().all(|&b| b == 0) && zero.int32_data.iter().all(|&v| v == 0);
    if zero.data_type != DataType::Int8 as i32 || !is_zero || !(scale.is_finite() && scale > 0.0) {
        return None;
    }
    let block = space_to_depth(graph, quantize, shape).unwrap_or([1, 1]);
    let quantized = graph.node[quantize].output[0].clone();
    for name in graph.node.iter_mut().flat_map(|n| &mut n.input).filter(|n| **n == quantized) {
        *name = input.to_owned();
    }
    graph.node.remove(quantize);
    let declared = graph.input.iter_mut().find(|v| v.name == input)?;
    if let Some(tract_onnx::pb::type_proto::Value::TensorType(t)) =
        declared.r#type.as_mut().and_then(|t| t.value.as_mut())
    {
        t.elem_type = DataType::Int8 as i32;
    }
    shape[1] *= block[0] * block[1];
    shape[3] /= block[0];
    shape[4] /= block[1];
    Some(Packed { scale, block })
}

/// Rewrites the one convolution behind the quantized input for 2 x 2 squares of pixels as channels.
fn space_to_depth(graph: &mut GraphProto, quantize: usize, shape: &[usize]) -> Option<[usize; 2]> {
    const BLOCK: [usize; 2] = [2, 2];
    let dequantize = only_reader(graph, &graph.node[quantize].output[0])?;
    let conv = only_reader(graph, graph.node[dequantize].output.first()?)?;
    let node = &graph.node[conv];
    if graph.node[dequantize].op_type != "DequantizeLinear" || node.op_type != "Conv" {
        return None;
    }
    let of_weights =
        graph.node.iter().find(|n| n.op_type == "DequantizeLinear" && n.output.first() == node.input.get(1))?;
    let stored = of_weights.input.first()?.clone();
    // Weights that somebody else reads stay as they are; so does a scale for anything but each output channel.
    let readers = graph.node.iter().flat_map(|n| &n.input).filter(|n| **n == stored).count();
    let axis = int(of_weights, "axis").unwrap_or(1);
    let per_channel = initializer(graph, of_weights.input.get(1)?)?.dims.iter().product::<i64>() > 1;
    let weights = initializer(graph, &stored)?;
    let dims: Vec<usize> = weights.dims.iter().map(|&d| d.max(0) as usize).collect();
    let &[c_out, c_in, kt, kh, kw] = &dims[..] else { return None };
    let plain = readers == 1
        && (!per_channel || axis == 0)
        && weights.data_type == DataType::Int8 as i32
        && weights.raw_data.len() == dims.iter().product::<usize>()
        && int(node, "group").unwrap_or(1) == 1
        && c_in == shape[1]
        && ints(node, "dilations").is_none_or(|d| d.iter().all(|&d| d == 1));
    let strides = ints(node, "strides")?;
    if !plain || strides.len() != 3 || strides[1..] != [2, 2] {
        return None;
    }
    let auto = node.attribute.iter().find(|a| a.name == "auto_pad").map_or(&b""[..], |a| &a.s);
    let mut pads = ints(node, "pads").unwrap_or_else(|| vec![0; 6]);
    if pads.len() != 6 || pads.iter().any(|p| !(0..1 << 16).contains(p)) {
        return None;
    }
    // Along height and width: the first pair of pixels that a kernel touches, how many pairs, and the padding in pairs.
    let mut taps = [(0i64, 0usize, 0i64, 0i64); 2];
    for (i, tap) in taps.iter_mut().enumerate() {
        let (n, k) = (shape[3 + i] as i64, dims[3 + i] as i64);
        let (front, back) = match auto {
            b"SAME_UPPER" => {
                let total = ((n.div_euclid(2) + n % 2 - 1) * 2 + k - n).max(0);
                (total / 2, total - total / 2)
            }
            b"" | b"NOTSET" => (pads[1 + i], pads[4 + i]),
            b"VALID" => (0, 0),
            _ => return None,
        };
        if n % 2 != 0 || n + front + back < k {
            return None;
        }
        let (first, last) = ((-front).div_euclid(2), (k - 1 - front).div_euclid(2));
        let columns = (n + front + back - k) / 2 + 1;
        // Behind the last pair there may be fewer pads than none: then some pairs are never reached.
        let after = columns - 1 + last - (n / 2 - 1);
        if after < 0 {
            return None;
        }
        *tap = (first, (last - first + 1) as usize, -first, after);
        (pads[1 + i], pads[4 + i]) = (front, back);
    }
    let [(top, th, ..), (left, tw, ..)] = taps;
    let c_packed = c_in * 4;
    let mut packed = vec![0u8; c_out * c_packed * kt * th * tw];
    for o in 0..c_out {
        for c in 0..c_in {
            for t in 0..kt {
                for y in 0..kh {
                    for x in 0..kw {
                        // Where the pixel lies from its output's first pair on.
                        let (py, px) = (y as i64 - pads[1] - 2 * top, x as i64 - pads[2] - 2 * left);
                        let channel = ((py % 2) * 2 + px % 2) as usize * c_in + c;
                        let to =
                            (((o * c_packed + channel) * kt + t) * th + (py / 2) as usize) * tw + (px / 2) as usize;
                        packed[to] = weights.raw_data[(((o * c_in + c) * kt + t) * kh + y) * kw + x];
                    }
                }
            }
        }
    }
    // Time's padding stays in the words that it was in.
    let time = match auto {
        b"SAME_UPPER" => {
            let total =
                ((shape[2] as i64 + strides[0] - 1) / strides[0] - 1) * strides[0] + kt as i64 - shape[2] as i64;
            let total = total.max(0);
            (total / 2, total - total / 2)
        }
        _ => (pads[0], pads[3]),
    };
    let weights = graph.initializer.iter_mut().find(|t| t.name == stored)?;
    weights.dims = [c_out, c_packed, kt, th, tw].iter().map(|&n| n as i64).collect();
    weights.raw_data = packed;
    let node = &mut graph.node[conv];
    node.attribute.retain(|a| !matches!(a.name.as_str(), "auto_pad" | "pads" | "strides" | "kernel_shape"));
    node.attribute.push(ints_attribute("kernel_shape", vec![kt as i64, th as i64, tw as i64]));
    node.attribute.push(ints_attribute("strides", vec![strides[0], 1, 1]));
    node.attribute.push(ints_attribute("pads", vec![time.0, taps[0].2, taps[1].2, time.1, taps[0].3, taps[1].3]));
    Some(BLOCK)
}

/// The node that reads a value, where there is just one that does.
fn only_reader(graph: &GraphProto, name: &str) -> Option<usize> {
    let mut readers = graph.node.iter().enumerate().filter(|(_, n)| reads(n, name));
    let (first, _) = readers.next()?;
    readers.next().is_none().then_some(first)
}

fn reads(node: &NodeProto, name: &str) -> bool {
    node.input.iter().any(|n| n == name)
}

fn initializer<'a>(graph: &'a GraphProto, name: &str) -> Option<&'a TensorProto> {
    graph.initializer.iter().find(|t| t.name == name)
}

fn scalar(graph: &GraphProto, name: &str) -> Option<f32> {
    let tensor = initializer(graph, name)?;
    if tensor.data_type != DataType::Float as i32 || tensor.dims.iter().product::<i64>() != 1 {
        return None;
    }
    match (tensor.float_data.first(), tensor.raw_data.first_chunk::<4>()) {
        (Some(&v), _) => Some(v),
        (None, Some(&bytes)) => Some(f32::from_le_bytes(bytes)),
        (None, None) => None,
    }
}
