//! Writes the seed corpus: `cargo run -p rekindle-fuzz --bin corpus`, after a change of a format.
//! Other files of a target's folder, such as inputs that once failed, stay as they are.

use std::io;
use std::path::Path;

use rekindle_fuzz::TARGETS;

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in &TARGETS {
        let folder = corpus.join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (name, bytes) in (target.seeds)() {
            std::fs::write(folder.join(name), bytes)?;
        }
    }
    Ok(())
}
