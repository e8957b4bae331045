#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;

fn file_of(header: &str, data: usize) -> tempfile::NamedTempFile {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 7);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

fn open(header: &str, data: usize) -> Result<Weights> {
    Weights::open_file(file_of(header, data).path(), &Limits::default())
}

fn refusal(header: &str, data: usize) -> String {
    open(header, data).unwrap_err().to_string()
}

const A: &str = r#""a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}"#;

#[test]
fn tensors_come_in_offset_order_with_absolute_offsets() {
    let header =
        format!(r#"{{"__metadata__":{{"format":"pt"}},"b":{{"dtype":"U8","shape":[],"data_offsets":[12,13]}},{A}}}"#);
    let file = file_of(&header, 13);
    let weights = Weights::open_file(file.path(), &Limits::default()).unwrap();
    let names: Vec<_> = weights.tensors().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(weights.get("b").unwrap().offset, 8 + header.len() as u64 + 12);
    assert_eq!(weights.bytes("a").unwrap().unwrap(), [7; 12]);
    assert_eq!(weights.bytes("c").unwrap(), None);
}

#[test]
fn faults_of_the_table_name_the_tensor() {
    for (entry, data, want) in [
        (r#"{"dtype":"F16","shape":[3],"data_offsets":[12,16]}"#, 16, "disagrees"),
        (r#"{"dtype":"F16","shape":[2],"data_offsets":[13,17]}"#, 17, "gap"),
        (r#"{"dtype":"F16","shape":[2],"data_offsets":[11,15]}"#, 15, "overlaps"),
        (r#"{"dtype":"F16","shape":[2],"data_offsets":[12,8]}"#, 12, "before it begins"),
        (r#"{"dtype":"F16","shape":[2],"data_offsets":[12,16]}"#, 14, "beyond"),
        (r#"{"dtype":"X9","shape":[2],"data_offsets":[12,16]}"#, 16, "X9"),
        (r#"{"dtype":"F16","shape":[2],"data_offsets":[12,16],"shape":[2]}"#, 16, "twice"),
        (r#"{"dtype":"F16","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[12,16]}"#, 16, "dimensions"),
        (r#"{"dtype":"F16","shape":[4294967296,4294967296,2],"data_offsets":[12,16]}"#, 16, "limit"),
        (r#"{"dtype":"F16","data_offsets":[12,16]}"#, 16, "shape"),
    ] {
        let message = refusal(&format!(r#"{{{A},"tail":{entry}}}"#), data);
        assert!(message.contains("tail") && message.contains(want), "{entry}: {message}");
    }
}

#[test]
fn the_data_is_covered_exactly() {
    assert!(refusal(&format!("{{{A}}}"), 13).contains("the tensors end at 12, the data at 13"));
    assert!(refusal(&format!("{{{A},{A}}}"), 12).contains("twice"));
    assert!(open("{}  ", 0).unwrap().tensors().next().is_none());
}

#[test]
fn header_lengths_are_compared_with_the_file_before_reading() {
    for length in [1 << 60, u64::MAX, 100] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), u64::to_le_bytes(length)).unwrap();
        let message = Weights::open_file(file.path(), &Limits::default()).unwrap_err().to_string();
        assert!(message.contains(&length.to_string()), "{message}");
    }
    let limits = Limits { safetensors_header_bytes: 10, ..Limits::default() };
    assert!(matches!(Weights::open_file(file_of(&format!("{{{A}}}"), 12).path(), &limits), Err(Error::Limit { .. })));
}

fn sharded(map: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(file_of(&format!("{{{A}}}"), 12).path(), dir.path().join("one.safetensors")).unwrap();
    std::fs::write(dir.path().join(INDEX), format!(r#"{{"weight_map":{map}}}"#)).unwrap();
    dir
}

fn open_sharded(map: &str) -> Result<Weights> {
    let dir = sharded(map);
    Weights::open_dir(&ModelDir::open(dir.path()).unwrap(), &Limits::default())
}

#[test]
fn shards_stay_inside_the_directory_and_hold_what_the_index_says() {
    assert!(open_sharded(r#"{"a":"one.safetensors"}"#).is_ok());
    for (map, want) in [
        (r#"{"a":"../one.safetensors"}"#, "leads out"),
        (r#"{"a":"/etc/hostname"}"#, "leads out"),
        (r#"{"a":""}"#, "leads out"),
        (r#"{"a":"two.safetensors"}"#, "two.safetensors"),
        (r#"{"a":"one.safetensors","b":"one.safetensors"}"#, "do not hold b"),
        (r#"{"a":3}"#, "names no file"),
        ("[]", "weight_map"),
    ] {
        let message = open_sharded(map).unwrap_err().to_string();
        assert!(message.contains(want), "{map}: {message}");
    }
}

#[cfg(unix)]
#[test]
fn links_may_stay_inside_a_download_cache_but_not_leave_it() {
    let cache = tempfile::tempdir().unwrap();
    let (blobs, revision) = (cache.path().join("repo/blobs"), cache.path().join("repo/snapshots/abc"));
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::create_dir_all(&revision).unwrap();
    std::fs::copy(file_of(&format!("{{{A}}}"), 12).path(), blobs.join("hash")).unwrap();
    std::os::unix::fs::symlink("../../blobs/hash", revision.join(SINGLE)).unwrap();
    let limits = Limits::default();
    assert!(Weights::open_dir(&ModelDir::open(&revision).unwrap(), &limits).is_ok());

    let plain = cache.path().join("plain");
    std::fs::create_dir(&plain).unwrap();
    std::os::unix::fs::symlink(blobs.join("hash"), plain.join(SINGLE)).unwrap();
    let refused = Weights::open_dir(&ModelDir::open(&plain).unwrap(), &limits).unwrap_err();
    assert!(refused.to_string().contains("leads out"), "{refused}");
}
