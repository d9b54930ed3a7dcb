//! What must not compile, and what the compiler then says. After a change of the messages, or of
//! the compiler, pin them anew with `TRYBUILD=overwrite cargo test --test compile_fail`.

#![cfg(target_os = "linux")]

#[test]
#[cfg_attr(feature = "nats", ignore = "with more types about, the compiler names others in its hints")]
fn misuse_does_not_compile() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/ui/pass.rs"); // with one of these, the others are built, not only checked
    cases.compile_fail("tests/ui/capturing_closure.rs");
    cases.compile_fail("tests/ui/function_pointer.rs");
    cases.compile_fail("tests/ui/argument_not_serializable.rs");
    cases.compile_fail("tests/ui/result_not_serializable.rs");
    cases.compile_fail("tests/ui/wrong_argument_type.rs");
    cases.compile_fail("tests/ui/wrong_number_of_arguments.rs");
    cases.compile_fail("tests/ui/borrowed_argument.rs");
    cases.compile_fail("tests/ui/stream_of_one_value.rs");
    cases.compile_fail("tests/ui/stream_item_not_serializable.rs");
}
