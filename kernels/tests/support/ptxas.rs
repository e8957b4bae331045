//! NVIDIA's assembler as a test tool.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// GPUs that the texts are assembled for.
pub const ARCHITECTURES: [&str; 7] = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_120"];
/// The version that the goldens were made with.
const VERSION: &str = "V13.5.37";

/// The assembler.
pub struct Ptxas {
    tool: PathBuf,
    version: String,
}

/// What a kernel uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block.
    pub shared_bytes: u32,
    /// Barriers of a block.
    pub barriers: u32,
}

/// A file name that nothing else uses.
fn scratch(extension: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("frit-{}-{number}.{extension}", std::process::id()))
}

/// A tool where `tests/tools.sh` puts it, which the crate of this test lies in or below.
fn of_repository(tool: &str) -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = own.ancestors().map(|dir| dir.join("tools/cuda/bin").join(tool)).find(|path| path.exists());
    found.unwrap_or_else(|| own.join("tools/cuda/bin").join(tool))
}

impl Ptxas {
    /// The assembler that `FRIT_PTXAS` names, or that of `tools/`.
    pub fn find() -> Ptxas {
        let tool = std::env::var_os("FRIT_PTXAS").map_or_else(|| of_repository("ptxas"), PathBuf::from);
        let Ok(output) = Command::new(&tool).arg("--version").output() else {
            panic!("there is no ptxas at {}: run `bash tests/tools.sh`, or name one in FRIT_PTXAS", tool.display());
        };
        Ptxas { tool, version: String::from_utf8_lossy(&output.stdout).into_owned() }
    }
    /// The assembler of the major version before: the one that `FRIT_PTXAS_12` names, or `ptxas-12` beside the other.
    pub fn find_older() -> Ptxas {
        let beside = Ptxas::find().tool.with_file_name("ptxas-12");
        let tool = std::env::var_os("FRIT_PTXAS_12").map(PathBuf::from).or(beside.exists().then_some(beside));
        let tool = tool.unwrap_or_else(|| of_repository("ptxas-12"));
        let Ok(output) = Command::new(&tool).arg("--version").output() else {
            panic!(
                "there is no ptxas 12 at {}: run `bash tests/tools.sh`, or name one in FRIT_PTXAS_12",
                tool.display()
            );
        };
        let version = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(version.contains("release 12."), "{version}");
        Ptxas { tool, version }
    }
    /// Whether it is the version that register counts were recorded with.
    pub fn is_of_goldens(&self) -> bool {
        self.version.contains(VERSION)
    }
    /// The machine code of a text as `nvdisasm` writes it, one instruction a line.
    pub fn disassemble(&self, text: &str, arch: &str) -> Vec<String> {
        let tool = self.tool.with_file_name("nvdisasm");
        let (source, binary) = (scratch("ptx"), scratch("cubin"));
        std::fs::write(&source, text).unwrap();
        let arch = format!("-arch={arch}");
        let done = Command::new(&self.tool).arg(arch).arg(&source).arg("-o").arg(&binary).status().unwrap();
        assert!(done.success());
        let Ok(output) = Command::new(&tool).arg("-c").arg(&binary).output() else {
            panic!("there is no nvdisasm at {}: run `bash tests/tools.sh`", tool.display());
        };
        std::fs::remove_file(&source).unwrap();
        std::fs::remove_file(&binary).unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let code = said.lines().filter_map(|l| l.trim().strip_prefix("/*")?.split_once("*/"));
        code.map(|(_, instruction)| instruction.trim().to_owned()).collect()
    }
    /// Assembles a text; fails on an error, a warning, a spill or local memory.
    pub fn assemble(&self, text: &str, arch: &str) -> Usage {
        self.try_assemble(text, arch).unwrap_or_else(|why| panic!("{arch}: {why}\n{text}"))
    }
    /// Assembles a text.
    ///
    /// # Errors
    /// What the assembler says of an error, a warning, a spill or local memory.
    pub fn try_assemble(&self, text: &str, arch: &str) -> Result<Usage, String> {
        let path = scratch("ptx");
        std::fs::write(&path, text).unwrap();
        let strict = ["--warn-on-spills", "--warn-on-local-memory-usage", "--warn-on-double-precision-use", "-Werror"];
        let output = Command::new(&self.tool)
            .args(["-v", "-o", "/dev/null", &format!("-arch={arch}")])
            .args(strict)
            .arg(&path)
            .output()
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() || said.contains("serialized") {
            return Err(said.into_owned());
        }
        let words: Vec<&str> = said.split_whitespace().collect();
        let before = |unit: &[&str]| -> u32 {
            let found = words
                .windows(unit.len() + 1)
                .find(|w| w[1..].iter().zip(unit).all(|(w, u)| w.trim_end_matches(',') == *u));
            found.map_or(0, |w| w[0].parse().unwrap())
        };
        let off = [["bytes", "spill", "stores"], ["bytes", "spill", "loads"], ["bytes", "stack", "frame"]];
        let registers = before(&["registers"]);
        if registers == 0 || off.iter().any(|unit| before(unit) > 0) {
            return Err(said.into_owned());
        }
        Ok(Usage { registers, shared_bytes: before(&["bytes", "smem"]), barriers: before(&["barriers"]) })
    }
}
