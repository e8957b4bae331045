//! The kernels of a graph's regions: built, proved where that is asked for, and rendered once for each target.

use super::{Lowering, half_rows};
use crate::error::{Error, Result};
use crate::fusion::outline::Built;
use crate::fusion::{self, Partition, Within, anchors, report};
use crate::graph::{Graph, ValueId};
use crate::memory;
use frit_kernels::ir::TileMap;
use frit_kernels::spec::{Anchor, ArgId, KernelSpec};
use frit_kernels::templates::{self, TemplateError};
use frit_plan::{Kernel, Matrix, Schedule, Variant};
use std::collections::{HashMap, HashSet};

impl Lowering<'_> {
    /// The partition of a graph, its regions, and their distinct kernels, which [`Built::kernel`] counts. A region whose
    /// kernel is found wrong is taken apart; one of a single operation stays, and is named.
    pub(super) fn fused(
        &mut self,
        graph: &Graph,
        within: &Within,
        mut divided: Option<Partition>,
    ) -> Result<(Partition, Vec<Built>, Vec<KernelSpec>)> {
        let mut apart: HashSet<ValueId> = HashSet::new();
        loop {
            let again = || fusion::partition(graph, &self.model.tables, within, &self.options.fusion, &apart);
            let part = divided.take().unwrap_or_else(again);
            let before = apart.len();
            let (built, specs) = self.kernels_of(graph, &part, &mut apart)?;
            if apart.len() == before {
                return Ok((part, built, specs));
            }
        }
    }
    /// The kernels of a partition. The members of those that validation finds wrong are added to `apart`.
    fn kernels_of(
        &mut self,
        graph: &Graph,
        part: &Partition,
        apart: &mut HashSet<ValueId>,
    ) -> Result<(Vec<Built>, Vec<KernelSpec>)> {
        let tables = &self.model.tables;
        let (mut built, mut specs) = (Vec::with_capacity(part.regions.len()), Vec::new());
        let mut known: HashMap<blake3::Hash, u32> = HashMap::new();
        for region in &part.regions {
            let site = anchors::Site { graph, tables, stored: &part.stored, region };
            let broken = |fault: String| Error::Internal {
                pass: "fusion",
                fault: format!("{}: {fault}", anchors::describe(&site)),
            };
            let (mut spec, operands) = anchors::build(&site).map_err(broken)?;
            spec.few_rows = region.few_rows;
            if matches!(spec.anchor, Anchor::MatMul { .. }) {
                spec.precision = self.options.fusion.matmul_precision;
            }
            if let Some(plant) = self.options.plant.0 {
                plant(&mut spec);
            }
            spec.aliases = memory::contracts(&spec);
            let hash = spec.hash();
            let key = (self.validation.on && !known.contains_key(&hash))
                .then(|| fusion::validate::key(&site, &spec, &operands));
            if let Some(key) = key.filter(|k| !self.compared.contains(k)) {
                let verdict = fusion::validate::region(&site, &spec, &operands, &mut self.kernel_budget);
                let members = region.members();
                let fused = members.iter().filter(|v| report::is_launch(graph, **v)).count() > 1;
                match verdict {
                    Ok(decided) => {
                        self.compared.insert(key);
                        self.validation.kernels[if decided { 0 } else { 2 }] += 1;
                    }
                    Err(fault) if fused && members.iter().any(|v| !apart.contains(v)) => {
                        self.validation.kernels[1] += 1;
                        self.validation.dropped.push(format!("kernel {}: {fault}", anchors::describe(&site)));
                        apart.extend(members);
                    }
                    Err(fault) => {
                        self.compared.insert(key);
                        self.validation.kernels[1] += 1;
                        let name = anchors::describe(&site);
                        self.validation.dropped.push(format!("kernel {name}: {fault}; it is one operation and stays"));
                    }
                }
            }
            let kernel = *known.entry(hash).or_insert_with(|| {
                specs.push(spec);
                specs.len() as u32 - 1
            });
            built.push(Built { region: region.clone(), kernel, operands });
        }
        Ok((built, specs))
    }
    /// Renders the kernels of regions and numbers them as the plan does.
    pub(super) fn registered(
        &mut self,
        graph: &Graph,
        mut built: Vec<Built>,
        specs: &[KernelSpec],
    ) -> Result<Vec<Built>> {
        let specs = half_rows::mark(graph, &mut built, specs, &self.options.fusion);
        let ids = specs.iter().map(|s| self.kernel(s)).collect::<Result<Vec<u32>>>()?;
        for b in &mut built {
            b.kernel = ids.get(b.kernel as usize).copied().unwrap_or_default();
        }
        Ok(built)
    }

    /// The kernel of a spec, rendered on first sight.
    fn kernel(&mut self, spec: &KernelSpec) -> Result<u32> {
        let hash = spec.hash();
        if let Some(id) = self.kernel_ids.get(&hash) {
            return Ok(*id);
        }
        spec.verify().map_err(|e| Error::Internal { pass: "fusion", fault: e.to_string() })?;
        let mut variants = Vec::new();
        for caps in &self.options.targets {
            let pays = self.options.every_text || templates::pays(spec, caps);
            if !pays || caps.has_warpgroups() && templates::warpgroup_refusal(spec).is_some() {
                continue;
            }
            let r = templates::render(spec, caps).map_err(|e| refused(spec, e))?;
            let dynamic_shared_bytes = u32::try_from(r.dynamic_shared_bytes())
                .map_err(|e| Error::Unsupported { region: spec.name.clone(), reason: e.to_string() })?;
            variants.push(Variant {
                tier: caps.tier,
                schedule: Schedule { template: r.template.into(), workgroup: r.workgroup, tile: r.tile },
                grid: r.grid,
                architecture: caps.architecture,
                dynamic_shared_bytes,
                text: r.text,
                matrices: r.matrices.iter().map(matrix).collect(),
            });
        }
        let n = self.names.entry(spec.name.clone()).or_insert(0);
        *n += 1;
        let name = if *n == 1 { spec.name.clone() } else { format!("{}_{n}", spec.name) };
        let id = self.kernels.len() as u32;
        self.kernels.push(Kernel { name, spec: spec.clone(), variants });
        self.kernel_ids.insert(hash, id);
        Ok(id)
    }
}

/// Why a target does not run a kernel.
fn refused(spec: &KernelSpec, e: TemplateError) -> Error {
    let region = spec.name.clone();
    match e {
        TemplateError::Invocations { used, limit, .. } => {
            Error::Invocations { code: fusion::Refusal::Threads, region, used, limit }
        }
        e => Error::Unsupported { region, reason: e.to_string() },
    }
}

/// A matrix that a kernel reaches through a tensor map, as the plan states it.
fn matrix((arg, map): &(ArgId, TileMap)) -> Matrix {
    Matrix { argument: arg.0, columns: map.columns, rows: map.rows, tile_rows: map.tile_rows }
}
