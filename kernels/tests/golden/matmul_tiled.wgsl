// matmul_tiled
// out[M, N] = a[M, K] w[K, N]

struct Params {
    m: u32,
    n: u32,
    k: u32,
    pad_3_: u32,
}

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
@group(0) @binding(3) var<uniform> params: Params;

var<workgroup> tile_a: array<f32, 256>;
var<workgroup> tile_w: array<f32, 256>;

@compute @workgroup_size(16, 16, 1)
fn main(
    @builtin(local_invocation_id) local_id: vec3<u32>,
    @builtin(global_invocation_id) global_id: vec3<u32>,
) {
    let row = global_id.y;
    let col = global_id.x;
    let slot = local_id.y * 16u + local_id.x;
    var acc: f32 = 0.0;
    for (var k0 = 0u; k0 < params.k; k0 += 16u) {
        let t = k0 + local_id.x;
        let t_1 = k0 + local_id.y;
        var xa: f32 = 0.0;
        var xw: f32 = 0.0;
        if (row < params.m && t < params.k) {
            xa = a[row * params.k + t];
        }
        if (t_1 < params.k && col < params.n) {
            xw = w[t_1 * params.n + col];
        }
        tile_a[slot] = xa;
        tile_w[slot] = xw;
        workgroupBarrier();
        acc = fma(tile_a[local_id.y * 16u], tile_w[local_id.x], acc);
        acc = fma(tile_a[local_id.y * 16u + 1u], tile_w[16u + local_id.x], acc);
        workgroupBarrier();
    }
    if (row < params.m && col < params.n) {
        out[row * params.n + col] = acc;
    }
}
