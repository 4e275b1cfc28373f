//! Privacy masks: parts of a camera's picture that nothing sees. They are black before anything else looks at the
//! picture: before scaling, flow, the watch for faults, and recorded frames.

use std::fmt;

use serde::Deserialize;

use crate::frame::{Picture, Pixels, Plane};

/// A part of the picture, in fractions of its width and height.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged, expecting = "a mask is [x, y, width, height] or a polygon [[x, y], [x, y], [x, y], ...]")]
pub enum Shape {
    /// x, y, width, height.
    Rectangle([f64; 4]),
    /// Corners, in turn.
    Polygon(Vec<[f64; 2]>),
}

impl Shape {
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        let inside = |v: &f64| (0.0..=1.0 + 1e-9).contains(v);
        let good = match self {
            Shape::Rectangle([x, y, w, h]) => {
                [x, y].iter().all(|v| inside(v)) && *w > 0.0 && *h > 0.0 && inside(&(x + w)) && inside(&(y + h))
            }
            Shape::Polygon(corners) => corners.len() >= 3 && corners.iter().flatten().all(inside),
        };
        if good {
            return Ok(());
        }
        Err(format!(
            "mask {self} does not lie within the picture: it is [x, y, width, height], or the corners of a polygon, three \
             or more, as fractions of the picture (0 to 1)"
        ))
    }

    fn corners(&self) -> Vec<[f64; 2]> {
        match self {
            Shape::Rectangle([x, y, w, h]) => vec![[*x, *y], [x + w, *y], [x + w, y + h], [*x, y + h]],
            Shape::Polygon(corners) => corners.clone(),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Shape::Rectangle(sides) => write!(f, "{sides:?}"),
            Shape::Polygon(corners) => write!(f, "{corners:?}"),
        }
    }
}

/// Blackens the masked parts of one source's pictures. Where there are none a picture is passed on as it is; else it is
/// copied, into memory that is kept.
#[derive(Debug)]
pub struct Masker {
    shapes: Vec<Shape>,
    size: [usize; 2],
    /// Cells of 2 x 2 pixels, which is one sample of chroma: row, first column, one past the last.
    runs: Vec<[usize; 3]>,
    planes: [Vec<u8>; 3],
}

impl Masker {
    pub fn new(shapes: &[Shape]) -> Self {
        Masker { shapes: shapes.to_vec(), size: [0, 0], runs: Vec::new(), planes: Default::default() }
    }

    pub fn apply<'a>(&'a mut self, picture: &Picture<'a>) -> Picture<'a> {
        if self.shapes.is_empty() {
            return *picture;
        }
        let (width, height) = (picture.width, picture.height);
        if self.size != [width, height] {
            self.size = [width, height];
            self.runs = runs(&self.shapes, width, height);
        }
        let (half_width, half_height) = (width.div_ceil(2), height.div_ceil(2));
        let pixels = match picture.pixels {
            Pixels::I420 { y, u, v, matrix, full_range } => {
                copy(y, width, height, &mut self.planes[0]);
                copy(u, half_width, half_height, &mut self.planes[1]);
                copy(v, half_width, half_height, &mut self.planes[2]);
                let black = if full_range { 0 } else { 16 };
                for &[row, from, to] in &self.runs {
                    for y in 2 * row..(2 * row + 2).min(height) {
                        self.planes[0][y * width + 2 * from..y * width + (2 * to).min(width)].fill(black);
                    }
                    for plane in &mut self.planes[1..] {
                        plane[row * half_width + from..row * half_width + to].fill(128);
                    }
                }
                let plane = |i: usize, stride| Plane { data: &self.planes[i], stride };
                Pixels::I420 {
                    y: plane(0, width),
                    u: plane(1, half_width),
                    v: plane(2, half_width),
                    matrix,
                    full_range,
                }
            }
            Pixels::Rgb(plane) => {
                copy(plane, width * 3, height, &mut self.planes[0]);
                for &[row, from, to] in &self.runs {
                    for y in 2 * row..(2 * row + 2).min(height) {
                        self.planes[0][(y * width + 2 * from) * 3..(y * width + (2 * to).min(width)) * 3].fill(0);
                    }
                }
                Pixels::Rgb(Plane { data: &self.planes[0], stride: width * 3 })
            }
        };
        Picture { pixels, ..*picture }
    }
}

/// Without the stride's padding. What is missing of a plane that is too short is black.
fn copy(plane: Plane, width: usize, height: usize, out: &mut Vec<u8>) {
    out.clear();
    for y in 0..height {
        let start = (y * plane.stride).min(plane.data.len());
        out.extend_from_slice(&plane.data[start..(start + width).min(plane.data.len())]);
        out.resize((y + 1) * width, 0);
    }
}

/// The cells that any shape touches: not a pixel of what is masked is left.
fn runs(shapes: &[Shape], width: usize, height: usize) -> Vec<[usize; 3]> {
    let (columns, rows) = (width.div_ceil(2), height.div_ceil(2));
    let mut cells = vec![false; columns * rows];
    for shape in shapes {
        let corners: Vec<[f64; 2]> =
            shape.corners().iter().map(|[x, y]| [x * width as f64 / 2.0, y * height as f64 / 2.0]).collect();
        let edges = || (0..corners.len()).map(|i| (corners[i], corners[(i + 1) % corners.len()]));
        for (row, line) in cells.chunks_exact_mut(columns.max(1)).enumerate() {
            // Where the edges cross the middle of the row, from left to right: inside is between every other two.
            let y = row as f64 + 0.5;
            let mut crossings: Vec<f64> = edges()
                .filter(|(a, b)| (a[1] <= y) != (b[1] <= y))
                .map(|(a, b)| a[0] + (y - a[1]) / (b[1] - a[1]) * (b[0] - a[0]))
                .collect();
            crossings.sort_by(f64::total_cmp);
            let mut fill = |from: f64, to: f64| {
                let (from, to) = (from.floor().max(0.0) as usize, to.ceil().max(0.0) as usize);
                line[from.min(columns)..to.min(columns)].fill(true);
            };
            crossings.chunks_exact(2).for_each(|c| fill(c[0], c[1]));
            // And every cell that an edge passes through.
            for (a, b) in edges() {
                let (top, bottom) = if a[1] <= b[1] { (a, b) } else { (b, a) };
                let (above, below) = (top[1].max(row as f64), bottom[1].min(row as f64 + 1.0));
                if above > below {
                    continue;
                }
                let at = |y: f64| match bottom[1] - top[1] {
                    0.0 => top[0],
                    tall => top[0] + (y - top[1]) / tall * (bottom[0] - top[0]),
                };
                let (p, q) = if top[1] == bottom[1] { (top[0], bottom[0]) } else { (at(above), at(below)) };
                fill(p.min(q), p.max(q));
            }
        }
    }
    let mut runs = Vec::new();
    for (row, line) in cells.chunks_exact(columns.max(1)).enumerate() {
        let mut from = None;
        for (column, masked) in line.iter().chain([&false]).enumerate() {
            match (masked, from) {
                (true, None) => from = Some(column),
                (false, Some(first)) => {
                    runs.push([row, first, column]);
                    from = None;
                }
                _ => {}
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::frame::Matrix;

    fn i420<'a>(y: &'a [u8], c: &'a [u8], width: usize, height: usize, stride: usize) -> Picture<'a> {
        let half = Plane { data: c, stride: width.div_ceil(2) };
        let pixels =
            Pixels::I420 { y: Plane { data: y, stride }, u: half, v: half, matrix: Matrix::Bt601, full_range: false };
        Picture { width, height, time: Duration::ZERO, dropped: 0, pixels }
    }

    /// Which pixels of a picture of this size are masked, by its luma.
    fn masked(shapes: &[Shape], width: usize, height: usize) -> Vec<bool> {
        let (y, c) = (vec![200; (width + 8) * height], vec![90; width.div_ceil(2) * height.div_ceil(2)]);
        let mut masker = Masker::new(shapes);
        let out = masker.apply(&i420(&y, &c, width, height, width + 8));
        let Pixels::I420 { y, u, v, .. } = out.pixels else { panic!() };
        for (i, luma) in y.data.iter().enumerate() {
            // Nor does a sample of colour say more than luma does.
            let cell = i / width / 2 * width.div_ceil(2) + i % width / 2;
            let expected = if *luma == 16 { 128 } else { 90 };
            assert_eq!((u.data[cell], v.data[cell]), (expected, expected), "pixel {i}");
        }
        y.data.iter().map(|luma| *luma == 16).collect()
    }

    #[test]
    fn every_pixel_that_a_shape_touches_is_black_and_no_other_but_its_neighbour() {
        let polygons = [
            Shape::Polygon(vec![[0.1, 0.1], [0.9, 0.3], [0.5, 0.95]]),
            Shape::Polygon(vec![[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.5, 0.5], [0.0, 1.0]]),
            Shape::Polygon(vec![[0.5, 0.2], [0.500_1, 0.2], [0.500_1, 0.9]]),
            Shape::Rectangle([0.25, 0.5, 0.5, 0.25]),
        ];
        for (width, height) in [(64, 48), (101, 67), (7, 5)] {
            for shape in &polygons {
                let corners = shape.corners();
                let mask = masked(std::slice::from_ref(shape), width, height);
                // By another rule: points all over the picture.
                let inside = |x: f64, y: f64| {
                    let edges = (0..corners.len()).map(|i| (corners[i], corners[(i + 1) % corners.len()]));
                    let crossed = edges.filter(|(a, b)| {
                        (a[1] <= y) != (b[1] <= y) && x < a[0] + (y - a[1]) / (b[1] - a[1]) * (b[0] - a[0])
                    });
                    crossed.count() % 2 == 1
                };
                let mut touched = vec![false; width * height];
                for i in 0..width * 8 * height * 8 {
                    let (px, py) = (i % (width * 8), i / (width * 8));
                    let at = |p: usize, size: usize| (p as f64 + 0.5) / (size * 8) as f64;
                    touched[py / 8 * width + px / 8] |= inside(at(px, width), at(py, height));
                }
                for (i, masked) in mask.iter().enumerate() {
                    assert!(*masked || !touched[i], "{shape} {width}x{height}: pixel {i} shows");
                    let (x, y) = ((i % width) as isize, (i / width) as isize);
                    let near = (-3..=3).any(|dy: isize| {
                        (-3..=3).any(|dx: isize| {
                            let (x, y) = (x + dx, y + dy);
                            let there = x >= 0 && y >= 0 && (x as usize) < width && (y as usize) < height;
                            there && touched[y as usize * width + x as usize]
                        })
                    });
                    let thin = corners.len() == 3 && corners[0][0] == 0.5 && corners[0][1] == 0.2;
                    assert!(!*masked || near || thin, "{shape} {width}x{height}: pixel {i} is black");
                }
                assert!(mask.contains(&true) && mask.contains(&false), "{shape} {width}x{height}");
            }
        }
    }

    #[test]
    fn rgb_is_masked_too_and_a_picture_of_another_size_anew() {
        let mut masker = Masker::new(&[Shape::Rectangle([0.5, 0.0, 0.5, 1.0])]);
        for (width, height) in [(8, 4), (16, 6)] {
            let data = vec![9; width * height * 3];
            let pixels = Pixels::Rgb(Plane { data: &data, stride: width * 3 });
            let out = masker.apply(&Picture { width, height, time: Duration::ZERO, dropped: 0, pixels });
            let Pixels::Rgb(plane) = out.pixels else { panic!() };
            let expected = (0..width * height * 3).map(|i| if i / 3 % width < width / 2 { 9 } else { 0 });
            assert_eq!(plane.data, expected.collect::<Vec<u8>>());
        }
    }

    #[test]
    fn the_whole_picture_can_be_masked_and_a_short_plane_is_no_panic() {
        assert!(masked(&[Shape::Rectangle([0.0, 0.0, 1.0, 1.0])], 9, 7).iter().all(|m| *m));
        let mut masker = Masker::new(&[Shape::Rectangle([0.0, 0.0, 0.5, 1.0])]);
        masker.apply(&i420(&[1, 2, 3], &[], 640, 480, 640));
    }

    #[test]
    fn what_is_no_mask_is_told() {
        for good in ["[0, 0, 1, 1]", "[[0.1, 0.2], [0.3, 0.2], [0.2, 0.9]]"] {
            let shapes: std::collections::BTreeMap<String, Shape> = toml::from_str(&format!("mask = {good}")).unwrap();
            shapes["mask"].check().unwrap();
        }
        for bad in
            ["[0.5, 0, 0.6, 1]", "[[0, 0], [1, 1]]", "[[0, 0], [1, 1], [0, 2]]", "[0, 0, 0, 1]", "[nan, 0, 1, 1]"]
        {
            let shapes: std::collections::BTreeMap<String, Shape> = toml::from_str(&format!("mask = {bad}")).unwrap();
            assert!(shapes["mask"].check().unwrap_err().contains("within the picture"), "{bad}");
        }
        let e = toml::from_str::<std::collections::BTreeMap<String, Shape>>("mask = [1, 2]").unwrap_err();
        assert!(e.to_string().contains("a mask is [x, y, width, height]"), "{e}");
    }
}
