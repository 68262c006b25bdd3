//! Tells the linker that the symbols of N-API come from the host process.
fn main() {
    napi_build::setup();
}
