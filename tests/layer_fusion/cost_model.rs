//! The cost model of chains of convolutions against the figures of the literature and against counting one by one.

use crate::support::Random;
use frit_compiler::chain::{
    Axis, Cost, ELEMENT_BYTES, Group, Objective, Overlap, Stage, best_segments, blocked_bytes, check, cost, search,
    shares,
};
use std::collections::{BTreeMap, BTreeSet};

/// The first five convolutions of VGG-E with the poolings between them, for images of 224 × 224.
fn vgg_e() -> Vec<Stage> {
    vec![
        Stage::conv("conv1_1", [3, 64], 224, 3, 1, 1),
        Stage::conv("conv1_2", [64, 64], 224, 3, 1, 1),
        Stage::pool("pool1", 64, 224, 2, 2),
        Stage::conv("conv2_1", [64, 128], 112, 3, 1, 1),
        Stage::conv("conv2_2", [128, 128], 112, 3, 1, 1),
        Stage::pool("pool2", 128, 112, 2, 2),
        Stage::conv("conv3_1", [128, 256], 56, 3, 1, 1),
    ]
}

const MIB: f64 = 1048576.0;

/// The figures of the paper: 77 MB by an accelerator that runs one convolution after the other with 64 output channels at a
/// time, 3.6 MB and 362 KB of buffers with all fused; its megabytes are 2²⁰ bytes.
#[test]
fn row_12_fused_layer_cnn_moves_3_6_of_77_megabytes() {
    let chain = vgg_e();
    check(&chain).unwrap();
    let apart: f64 = blocked_bytes(&chain, 64) as f64 / MIB;
    assert!((apart - 77.137).abs() < 1e-3, "{apart}");
    let all = Group { stages: 0..chain.len(), tile: [1, 56], overlap: Overlap::Reuse };
    let c = cost(&chain, &all);
    let together = c.traffic_bytes() as f64 / MIB;
    assert!((together - 3.637).abs() < 1e-3, "{together}");
    assert_eq!(c.traffic_bytes(), 4 * (3 * 224 * 224 + 256 * 56 * 56));
    assert!((1.0f64 - together / apart - 0.95).abs() < 0.005, "95 % fewer");
    assert!((c.footprint_bytes as f64 / 362e3 - 1.0).abs() < 0.05, "{}", c.footprint_bytes);
    // With reuse nothing is computed twice; with recomputation on tiles of 7 × 7 it is, by this many times.
    let once: u64 = chain.iter().map(|s| s.work() * s.places()[0] * s.places()[1]).sum();
    assert_eq!(c.work, once);
    let tiles = cost(&chain, &Group { tile: [7, 7], overlap: Overlap::Recompute, ..all });
    assert!(tiles.work > once && tiles.traffic_bytes() > c.traffic_bytes());
}

/// A random chain of convolutions with strides, dilations and unlike padding.
fn random_chain(r: &mut Random, stages: usize) -> Vec<Stage> {
    let mut extents = [9 + r.below(9), 9 + r.below(9)];
    let mut channels = 1 + r.below(3);
    let mut chain = Vec::new();
    while chain.len() < stages {
        let axes = extents.map(|extent| Axis {
            extent,
            taps: 1 + r.below(4),
            stride: 1 + r.below(3),
            dilation: 1 + r.below(2),
            padding: [r.below(3), r.below(3)],
        });
        let out = 1 + r.below(3);
        let s = Stage { name: format!("s{}", chain.len()), channels: [channels, out], groups: 1, axes, weights: 5 };
        if s.places().contains(&0) {
            continue;
        }
        extents = s.places();
        channels = out;
        chain.push(s);
    }
    chain
}

/// Runs a chain tile by tile, point by point: which points of every value are computed or read, and how often.
fn counted(chain: &[Stage], tile: [u64; 2]) -> (u64, u64, u64) {
    let [rows, columns] = chain.last().unwrap().places();
    let (mut read, mut work, mut most) = (0, 0, 0);
    for r0 in (0..rows).step_by(tile[0] as usize) {
        for c0 in (0..columns).step_by(tile[1] as usize) {
            let mut points: BTreeSet<(u64, u64)> = (r0..(r0 + tile[0]).min(rows))
                .flat_map(|r| (c0..(c0 + tile[1]).min(columns)).map(move |c| (r, c)))
                .collect();
            let mut held = Vec::new();
            for (i, s) in chain.iter().enumerate().rev() {
                let mut needed = BTreeSet::new();
                for (r, c) in &points {
                    work += s.channels[1] * s.channels[0] / s.groups * s.axes[0].taps * s.axes[1].taps;
                    for t in 0..s.axes[0].taps {
                        for u in 0..s.axes[1].taps {
                            let at = |p: u64, t: u64, a: &Axis| {
                                (p * a.stride + t * a.dilation).checked_sub(a.padding[0]).filter(|x| *x < a.extent)
                            };
                            if let (Some(y), Some(x)) = (at(*r, t, &s.axes[0]), at(*c, u, &s.axes[1])) {
                                needed.insert((y, x));
                            }
                        }
                    }
                }
                let size = needed.len() as u64 * s.channels[0];
                held.push(if i == 0 { 0 } else { size });
                points = needed;
            }
            read += points.len() as u64 * chain[0].channels[0];
            held.insert(0, 0);
            most = most.max(held.windows(2).map(|w| w[0] + w[1]).max().unwrap());
        }
    }
    (read * ELEMENT_BYTES, work, most * ELEMENT_BYTES)
}

/// Predicted = counted, as integers, for tiles of every size; the bound of memory is that of separate largest extents.
#[test]
fn row_14_convfusion_predicts_what_is_counted() {
    let mut r = Random::new(14);
    for n in 0..40 {
        let stages = 1 + n % 4;
        let chain = random_chain(&mut r, stages);
        check(&chain).unwrap();
        let [rows, columns] = chain.last().unwrap().places();
        for tile in [[1, 1], [2, 3], [rows, 1], [3, columns], [rows, columns]] {
            let group = Group { stages: 0..stages, tile, overlap: Overlap::Recompute };
            let c = cost(&chain, &group);
            let (read, work, held) = counted(&chain, tile);
            assert_eq!((c.read_bytes, c.work), (read, work), "{chain:?} {tile:?}");
            assert!(c.footprint_bytes >= held, "{chain:?} {tile:?}");
            if tile == [rows, columns] {
                assert_eq!(c.footprint_bytes, held, "{chain:?}");
                // One tile: nothing is shared, so nothing is done twice.
                let reuse = cost(&chain, &Group { overlap: Overlap::Reuse, ..group });
                assert_eq!((reuse.read_bytes, reuse.work), (c.read_bytes, c.work));
            }
            assert!(cost(&chain, &Group { stages: 0..stages, tile, overlap: Overlap::Reuse }).work <= c.work);
        }
    }
}

fn brute(chain: &[Stage], from: usize, cap: u64) -> u64 {
    let extent = |to: usize| chain[to - 1].places();
    let sizes = |n: u64| (0..8).map(|i| 1u64 << i).filter(move |t| *t < n).chain([n]);
    (from + 1..=chain.len())
        .filter_map(|to| {
            let [rows, columns] = extent(to);
            let costs = sizes(rows)
                .flat_map(|r| sizes(columns).map(move |c| [r, c]))
                .map(|tile| cost(chain, &Group { stages: from..to, tile, overlap: Overlap::Recompute }));
            let fits = |c: &Cost| c.footprint_bytes <= cap || to == from + 1;
            let least = costs.filter(fits).map(|c| c.traffic_bytes()).min()?;
            Some(least + if to == chain.len() { 0 } else { brute(chain, to, cap) })
        })
        .min()
        .unwrap()
}

/// The plan is the best there is, never moves more than stages by themselves, and is them without memory (T4).
#[test]
fn row_14_convfusion_search_is_brute_force() {
    let mut r = Random::new(141);
    for n in 0..12 {
        let chain = random_chain(&mut r, 2 + n % 4);
        let apart: u64 = (0..chain.len())
            .map(|i| {
                let tile = chain[i].places();
                cost(&chain, &Group { stages: i..i + 1, tile, overlap: Overlap::Recompute }).traffic_bytes()
            })
            .sum();
        let mut before = u64::MAX;
        for cap in [0, 200, 800, 3200, 1 << 40] {
            let plan = search(&chain, Objective::Traffic, cap, &[Overlap::Recompute]).unwrap();
            let bytes = plan.total.traffic_bytes();
            assert_eq!(bytes, brute(&chain, 0, cap), "{cap}: {chain:?}");
            assert!(bytes <= apart && bytes <= before);
            before = bytes;
            if cap == 0 {
                assert!(plan.groups.iter().all(|g| g.stages.len() == 1 || cost(&chain, g).footprint_bytes == 0));
            }
            let ends: Vec<usize> = plan.groups.iter().map(|g| g.stages.end).collect();
            assert_eq!(ends.last(), Some(&chain.len()));
        }
    }
    // More than a hundred times fewer accesses, as the paper reports for fused against unfused: a deep chain of narrow maps.
    let deep: Vec<Stage> = (0..24)
        .map(|i| {
            let channels = if i == 0 {
                [1, 16]
            } else if i == 23 {
                [16, 1]
            } else {
                [16, 16]
            };
            Stage::conv("c", channels, 64, 3, 1, 1)
        })
        .collect();
    let plan = search(&deep, Objective::Traffic, 1 << 30, &[Overlap::Reuse, Overlap::Recompute]).unwrap();
    let apart: u64 = deep.iter().map(|s| s.elements().iter().sum::<u64>() * ELEMENT_BYTES).sum();
    assert_eq!(plan.groups.len(), 1);
    assert!(apart > 100 * plan.total.traffic_bytes());
    // Where work is dear, tiles that repeat it are not worth their bytes.
    let dear = search(&vgg_e(), Objective::Latency { work_per_byte: 1.0 }, 48 << 10, &[Overlap::Recompute]).unwrap();
    let cheap = search(&vgg_e(), Objective::Latency { work_per_byte: 1e6 }, 48 << 10, &[Overlap::Recompute]).unwrap();
    assert!(dear.total.work <= cheap.total.work);
    assert!(cheap.total.traffic_bytes() <= dear.total.traffic_bytes());
    // Stages that do not meet.
    let said = search(&[vgg_e()[0].clone(), vgg_e()[3].clone()], Objective::Traffic, 0, &[Overlap::Recompute]);
    assert!(said.unwrap_err().contains("conv1_1 gives"));
}

/// Rows of a device: in proportion to its speed, every row with one.
fn cut_rows(n: u64, speeds: &[u64], device: usize) -> std::ops::Range<u64> {
    let all: u64 = speeds.iter().sum();
    let upto = |d: usize| n * speeds[..d].iter().sum::<u64>() / all;
    upto(device)..upto(device + 1)
}

/// A chain over devices: what each computes from its own rows and what it receives is what one device computes, deeper
/// segments send less and compute more.
#[test]
fn row_22_paap_devices_exchange_halos() {
    let mut r = Random::new(22);
    let rows_of = |extent: u64, taps: u64, stride: u64, padding: u64| Axis {
        extent,
        taps,
        stride,
        dilation: 1,
        padding: [padding; 2],
    };
    for speeds in [vec![1], vec![1, 2, 1], vec![3, 1], vec![1, 1, 1, 1, 1]] {
        // Eight stages along rows; one channel and one column, so that values are lines.
        let mut extent = 61;
        let chain: Vec<Stage> =
            [(3, 1, 1), (3, 1, 1), (5, 1, 2), (2, 2, 0), (3, 1, 1), (1, 1, 0), (3, 2, 1), (3, 1, 1)]
                .into_iter()
                .map(|(taps, stride, padding)| {
                    let rows = rows_of(extent, taps, stride, padding);
                    extent = rows.places();
                    Stage {
                        name: "line".into(),
                        channels: [1; 2],
                        groups: 1,
                        axes: [rows, rows_of(1, 1, 1, 0)],
                        weights: taps,
                    }
                })
                .collect();
        check(&chain).unwrap();
        let filters: Vec<Vec<f64>> =
            chain.iter().map(|s| r.floats(s.axes[0].taps, 1.0).into_iter().map(f64::from).collect()).collect();
        let input: Vec<f64> = r.floats(61, 1.0).into_iter().map(f64::from).collect();
        // One stage where its inputs are known; a point without one of its inputs is not computed.
        let step = |i: usize, known: &BTreeMap<u64, f64>| -> BTreeMap<u64, f64> {
            let a = &chain[i].axes[0];
            let place = |p: u64| {
                let taps =
                    (0..a.taps).map(|t| match (p * a.stride + t).checked_sub(a.padding[0]).filter(|x| *x < a.extent) {
                        Some(at) => known.get(&at).map(|v| v * filters[i][t as usize]),
                        None => Some(0.0),
                    });
                taps.sum::<Option<f64>>().map(|v| (p, v.max(-1e9)))
            };
            (0..a.places()).filter_map(place).collect()
        };
        let all: BTreeMap<u64, f64> = (0..61).zip(input.iter().copied()).collect();
        let want = (0..8).fold(all.clone(), |v, i| step(i, &v));
        let (mut sent, mut worked, mut needed) = (Vec::new(), Vec::new(), Vec::new());
        for depth in [1, 2, 4, 8] {
            let plan = shares(&chain, &speeds, depth).unwrap();
            let mut memory: Vec<BTreeMap<u64, f64>> = vec![all.clone(); speeds.len()];
            for segment in plan.chunk_by(|a, b| a.stages == b.stages) {
                let before = memory.clone();
                let mut owned: Vec<BTreeMap<u64, f64>> = Vec::new();
                for s in segment {
                    // Own rows, and those received from whoever has them.
                    let mut known: BTreeMap<u64, f64> = BTreeMap::new();
                    for row in &s.needed {
                        let from = if s.received.contains(row) {
                            before.iter().enumerate().filter(|(d, _)| *d != s.device).find_map(|(_, m)| m.get(row))
                        } else {
                            before[s.device].get(row)
                        };
                        known.insert(*row, *from.unwrap_or_else(|| panic!("row {row} is nowhere")));
                    }
                    assert_eq!(s.received_bytes, s.received.len() as u64 * ELEMENT_BYTES);
                    let made = s.stages.clone().fold(known, |v, i| step(i, &v));
                    owned.push(s.rows.clone().map(|row| (row, made[&row])).collect());
                }
                memory = owned;
            }
            let got: BTreeMap<u64, f64> = memory.into_iter().flatten().collect();
            assert_eq!(got, want, "{speeds:?} at depth {depth}");
            sent.push(plan.iter().map(|s| s.received_bytes).sum::<u64>());
            worked.push(plan.iter().map(|s| s.work).sum::<u64>());
            needed.push(shares(&chain, &[1], depth).unwrap().iter().map(|s| s.work).sum::<u64>());
        }
        assert!(sent.windows(2).all(|w| w[0] >= w[1]), "{sent:?}");
        // Work that is done more than once; a deeper segment leaves out what nothing reads, on one device as well.
        let twice: Vec<u64> = worked.iter().zip(&needed).map(|(w, n)| w - n).collect();
        assert!(twice.windows(2).all(|w| w[0] <= w[1]), "{twice:?}");
        let once: u64 = chain.iter().map(|s| s.work() * s.places()[0] * s.places()[1]).sum();
        assert_eq!(worked[0], once);
        // The segments of least time are those of trying all: 2⁷ ways of ending them.
        for time_per_byte in [0.0, 0.3, 3.0, 100.0] {
            let (ends, found): (Vec<usize>, f64) = best_segments(&chain, &speeds, time_per_byte).unwrap();
            let time = |ends: &[usize]| -> f64 {
                let mut sum = 0.0;
                for (i, to) in ends.iter().enumerate() {
                    let from = if i == 0 { 0 } else { ends[i - 1] };
                    // Segments of any place: the chain's front as one segment, its tail by depth.
                    let tail = shares(&chain[from..*to], &speeds, to - from).unwrap();
                    let each = tail.iter().filter(|s| s.work > 0).map(|s| {
                        let own = cut_rows(chain[from].axes[0].extent, &speeds, s.device);
                        let missing = s.needed.iter().filter(|r| from > 0 && !own.contains(r)).count() as f64;
                        s.work as f64 / speeds[s.device] as f64 + 4.0 * missing * time_per_byte
                    });
                    sum += each.fold(0.0, f64::max);
                }
                sum
            };
            let ways = (0..128u32).map(|bits| {
                let ends: Vec<usize> = (1..8).filter(|i| bits >> (i - 1) & 1 == 1).chain([8]).collect();
                time(&ends)
            });
            let least = ways.fold(f64::INFINITY, f64::min);
            assert!((found - least).abs() <= 1e-9 * least, "{found} {least}");
            assert!((time(&ends) - least).abs() <= 1e-9 * least, "{ends:?}");
        }
        // T4: one device sends nothing and computes everything once.
        assert_eq!((sent[0] == 0, sent[3]), (speeds.len() == 1, 0));
    }
}
