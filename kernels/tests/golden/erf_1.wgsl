fn erf_1(x: f32) -> f32 {
    let t = min(abs(x), 4.0);
    let s = t * t;
    var p = -5.96761703e-4;
    p = fma(p, s, 4.99119423e-3);
    p = fma(p, s, -2.67681349e-2);
    p = fma(p, s, 1.12819925e-1);
    p = fma(p, s, -3.76125336e-1);
    p = fma(p, s, 1.28379166e-1);
    var q = fma(-1.72853470e-5, t, 3.83197126e-4);
    let r = fma(-3.88396438e-3, t, 2.42546219e-2);
    q = fma(q, s, r);
    q = fma(q, t, -1.06777877e-1);
    q = fma(q, t, -6.34846687e-1);
    q = fma(q, t, -1.28717512e-1);
    q = fma(q, t, -t);
    let far = select(1.0, -1.0, x < 0.0) * (1.0 - exp(q));
    return select(fma(p, x, x), far, t > 0.927734375);
}
