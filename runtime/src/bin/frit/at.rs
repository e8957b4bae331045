//! The run that a verb counts or times: so many sequences of so many tokens behind so many others.

use frit::{Error, Result};
use frit_plan::{Plan, Program, SizeDecl, sizes};

#[derive(clap::Args, Clone, Default)]
pub struct At {
    /// Sequences of the run [default: 1].
    #[arg(long)]
    batch: Option<u64>,
    /// Tokens of each sequence [default: 64].
    #[arg(long)]
    tokens: Option<u64>,
    /// Tokens already in the cache [default: 64].
    #[arg(long)]
    past: Option<u64>,
}

/// What a program does, without the runs that it is for: `decode` of `decode@8+parts`.
fn stem(program: &str) -> &str {
    program.split(['@', '+']).next().unwrap_or(program)
}

/// The largest rows that a program is for, where its name says.
fn rows(program: &str) -> Option<u64> {
    program.split_once('@')?.1.split('+').next()?.parse().ok()
}

impl At {
    /// Values of a plan's sizes for such a run of a program.
    ///
    /// # Errors
    /// [`Error::Option`] for a size that was asked for and that the program does not take.
    pub fn values(&self, plan: &Plan, program: &str) -> Result<Vec<u64>> {
        let found = plan.program(program);
        let of = |name: &str, asked: Option<u64>, usual: u64| size(plan, found, name, asked, usual);
        let batch = of(sizes::BATCH, self.batch, 1)?;
        let mut tokens = of(sizes::TOKENS, self.tokens, 64)?;
        if let Some(rows) = rows(program) {
            tokens = tokens.min((rows / batch.max(1)).max(1));
        }
        let reads_cache = matches!(stem(program), "decode" | "decode_wide");
        let room = declared(plan, sizes::CAPACITY).and_then(|s| s.max).unwrap_or(u64::MAX).saturating_sub(tokens);
        let past = if reads_cache { of(sizes::PAST, self.past, room.min(64))? } else { 0 };
        let asked = self.past.filter(|_| reads_cache).or(self.tokens).map(|_| past.saturating_add(tokens));
        let columns = of(sizes::CAPACITY, asked, past.saturating_add(tokens))?;
        let value = |s: &SizeDecl| match s.name.as_str() {
            sizes::BATCH => Ok(batch),
            sizes::TOKENS => Ok(tokens),
            sizes::PAST => Ok(past),
            sizes::CAPACITY => Ok(columns),
            sizes::POSITIONS => of(sizes::POSITIONS, None, columns),
            name => of(name, None, 1),
        };
        plan.sizes.iter().map(|s| Ok(value(s)?.max(s.min))).collect()
    }
    /// The same where a report lists programs that the run does not fit as well: those at their usual sizes.
    pub fn values_or_usual(&self, plan: &Plan, program: &str) -> Vec<u64> {
        self.values(plan, program).or_else(|_| At::default().values(plan, program)).unwrap_or_default()
    }
}

fn declared<'p>(plan: &'p Plan, name: &str) -> Option<&'p SizeDecl> {
    plan.sizes.iter().find(|s| s.name == name)
}

/// A size as the program fixes it, as asked for, or as usual where that fits.
fn size(plan: &Plan, program: Option<&Program>, name: &str, asked: Option<u64>, usual: u64) -> Result<u64> {
    let of =
        |list: fn(&Program) -> &[(String, u64)]| program.into_iter().flat_map(list).find(|f| f.0 == name).map(|f| f.1);
    if let Some(n) = of(|p| &p.fixed) {
        return Ok(n);
    }
    let s = declared(plan, name);
    let least = s.map_or(0, |s| s.min);
    let most = s.and_then(|s| s.max).into_iter().chain(of(|p| &p.at_most)).min().unwrap_or(u64::MAX);
    match asked {
        Some(n) if n < least => Err(refused(program, name, format!("{n} is not at least {least}"))),
        Some(n) if n > most => Err(refused(program, name, format!("{n} is more than {most}"))),
        Some(n) => Ok(n),
        None => Ok(usual.min(most)),
    }
}

fn refused(program: Option<&Program>, name: &str, reason: String) -> Error {
    let of = program.map_or("the plan", |p| p.name.as_str());
    let option = match name {
        sizes::BATCH => format!("--batch, size {name} of {of}"),
        sizes::TOKENS => format!("--tokens, size {name} of {of}"),
        sizes::PAST => format!("--past, size {name} of {of}"),
        _ => format!("--past and --tokens together, size {name} of {of}"),
    };
    Error::Option { option, reason }
}
