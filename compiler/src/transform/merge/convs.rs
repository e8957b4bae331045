//! Convolutions with nothing in between become one, and the choice of which to merge under a budget of time.
//!
//! Two-dimensional cross-correlations in the layout `[out, in, kh, kw]`, stride 1 in the first.

use crate::transform::error::{Result, refuse};

/// A convolution.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv {
    /// Output channels.
    pub out: usize,
    /// Input channels.
    pub input: usize,
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// `[out, in, kh, kw]`.
    pub weight: Vec<f64>,
    /// `[out]`.
    pub bias: Vec<f64>,
    /// Zeros around the input.
    pub padding: usize,
    /// Step of the output.
    pub stride: usize,
}

impl Conv {
    /// The convolution that gives back its input, in a kernel of odd size around its centre.
    pub fn identity(channels: usize, kernel: usize) -> Conv {
        let mut weight = vec![0.0; channels * channels * kernel * kernel];
        for c in 0..channels {
            weight[((c * channels + c) * kernel + kernel / 2) * kernel + kernel / 2] = 1.0;
        }
        let bias = vec![0.0; channels];
        Conv { out: channels, input: channels, kernel: [kernel; 2], weight, bias, padding: kernel / 2, stride: 1 }
    }

    /// With a batch norm behind it: `γ (y − μ) / √(σ² + ε) + β`.
    pub fn with_norm(mut self, gamma: &[f64], beta: &[f64], mean: &[f64], variance: &[f64], eps: f64) -> Conv {
        let each = self.weight.len() / self.out.max(1);
        for o in 0..self.out {
            let scale = gamma[o] / (variance[o] + eps).sqrt();
            self.weight[o * each..(o + 1) * each].iter_mut().for_each(|w| *w *= scale);
            self.bias[o] = (self.bias[o] - mean[o]) * scale + beta[o];
        }
        self
    }

    /// With its input added to its output: +1 at the centre of the kernel.
    ///
    /// # Errors
    /// A convolution that changes the extents or the number of channels.
    pub fn with_skip(mut self) -> Result<Conv> {
        let [h, w] = self.kernel;
        if self.out != self.input || self.stride != 1 || h != w || h % 2 == 0 || self.padding != h / 2 {
            return refuse(
                "merge-convs",
                "a skip connection goes around a convolution that changes extents or channels",
            );
        }
        for c in 0..self.out {
            self.weight[((c * self.input + c) * h + h / 2) * w + w / 2] += 1.0;
        }
        Ok(self)
    }

    /// The output for an input `[in, height, width]`, with its extents.
    pub fn apply(&self, x: &[f64], height: usize, width: usize) -> (Vec<f64>, usize, usize) {
        let [kh, kw] = self.kernel;
        let extent = |n: usize, k: usize| (n + 2 * self.padding + 1).saturating_sub(k).div_ceil(self.stride);
        let (oh, ow) = (extent(height, kh), extent(width, kw));
        let mut y = Vec::with_capacity(self.out * oh * ow);
        for o in 0..self.out {
            for i in 0..oh {
                for j in 0..ow {
                    let mut sum = self.bias[o];
                    for c in 0..self.input {
                        for a in 0..kh {
                            for b in 0..kw {
                                let (r, s) = (i * self.stride + a, j * self.stride + b);
                                if r < self.padding || s < self.padding {
                                    continue;
                                }
                                let (r, s) = (r - self.padding, s - self.padding);
                                if r < height && s < width {
                                    let w = self.weight[((o * self.input + c) * kh + a) * kw + b];
                                    sum += w * x[(c * height + r) * width + s];
                                }
                            }
                        }
                    }
                    y.push(sum);
                }
            }
        }
        (y, oh, ow)
    }
}

/// The convolution that does what `first` and then `second` do: a kernel of size `k₁ + k₂ − 1`, `W = W₂ * W₁`,
/// `b = ΣW₂b₁ + b₂`. Exact where `second` adds no zeros of its own, since those would stand for `b₁` and what `first`
/// computes beyond the border.
///
/// # Errors
/// Channels that do not meet, a stride of `first` other than 1, and padding of `second` unless it is 0.
pub fn merge_convs(first: &Conv, second: &Conv) -> Result<Conv> {
    if first.out != second.input {
        return refuse("merge-convs", format!("{} channels meet {}", first.out, second.input));
    }
    if first.stride != 1 {
        return refuse("merge-convs", "the first convolution has a stride; its outputs are not all there");
    }
    if second.padding != 0 {
        return refuse(
            "merge-convs",
            "the second convolution pads what the first computes, which one convolution cannot do; move all padding to the first",
        );
    }
    let ([h1, w1], [h2, w2]) = (first.kernel, second.kernel);
    let (kh, kw) = (h1 + h2 - 1, w1 + w2 - 1);
    let mut weight = vec![0.0; second.out * first.input * kh * kw];
    let mut bias = second.bias.clone();
    for o in 0..second.out {
        for m in 0..first.out {
            for a in 0..h2 {
                for b in 0..w2 {
                    let v = second.weight[((o * second.input + m) * h2 + a) * w2 + b];
                    bias[o] += v * first.bias[m];
                    for c in 0..first.input {
                        for i in 0..h1 {
                            for j in 0..w1 {
                                let from = first.weight[((m * first.input + c) * h1 + i) * w1 + j];
                                weight[((o * first.input + c) * kh + a + i) * kw + b + j] += v * from;
                            }
                        }
                    }
                }
            }
        }
    }
    let (out, input) = (second.out, first.input);
    Ok(Conv { out, input, kernel: [kh, kw], weight, bias, padding: first.padding, stride: second.stride })
}

/// One way to run layers `from..to` as a single one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment {
    /// First layer.
    pub from: usize,
    /// One past the last.
    pub to: usize,
    /// Time it takes, in whole ticks.
    pub ticks: usize,
    /// What merging keeps of the model's quality.
    pub importance: f64,
}

/// The segments that cover layers `0..layers` within `budget` ticks with the largest sum of importance; `None` if none do.
/// By dynamic programming over layers and ticks; of equal sums the one found first in the order given.
pub fn choose(layers: usize, segments: &[Segment], budget: usize) -> Option<Vec<Segment>> {
    let mut best: Vec<Vec<Option<(f64, usize)>>> = vec![vec![None; budget + 1]; layers + 1];
    best[0][0] = Some((0.0, usize::MAX));
    for at in 1..=layers {
        for (n, s) in segments.iter().enumerate().filter(|(_, s)| s.to == at && s.from < at) {
            for spent in s.ticks..=budget {
                let Some((sum, _)) = best[s.from][spent - s.ticks] else { continue };
                let sum = sum + s.importance;
                if best[at][spent].is_none_or(|(known, _)| sum > known) {
                    best[at][spent] = Some((sum, n));
                }
            }
        }
    }
    let found = (0..=budget).filter_map(|t| best[layers][t].map(|(sum, _)| (t, sum)));
    let (mut spent, _) = found.fold(None, |m: Option<(usize, f64)>, f| match m {
        Some(known) if known.1 >= f.1 => Some(known),
        _ => Some(f),
    })?;
    let (mut at, mut chosen) = (layers, Vec::new());
    while at > 0 {
        let s = segments[best[at][spent]?.1];
        chosen.push(s);
        (at, spent) = (s.from, spent - s.ticks);
    }
    chosen.reverse();
    Some(chosen)
}
