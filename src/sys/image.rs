//! The main program image: where it was loaded, which parts are code, and which build it is.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::OnceLock;

/// What the dynamic loader says of the main program.
#[derive(Debug)]
pub(crate) struct Image {
    load_bias: usize,
    code: Vec<Range<usize>>,
    build_id: Option<Vec<u8>>,
}

impl Image {
    /// The image of the running program.
    pub(crate) fn main() -> &'static Image {
        static IMAGE: OnceLock<Image> = OnceLock::new();
        IMAGE.get_or_init(read_main_image)
    }

    /// The offset of an address from the load bias, if the address lies in this image's code.
    pub(crate) fn offset_of(&self, address: usize) -> Option<u64> {
        self.is_code(address).then(|| address.wrapping_sub(self.load_bias) as u64)
    }

    /// The address at an offset, if that lies in this image's code.
    pub(crate) fn address_at(&self, offset: u64) -> Option<usize> {
        let address = self.load_bias.wrapping_add(usize::try_from(offset).ok()?);
        self.is_code(address).then_some(address)
    }

    /// The build-id that the linker wrote, if it wrote one.
    pub(crate) fn build_id(&self) -> Option<&[u8]> {
        self.build_id.as_deref()
    }

    fn is_code(&self, address: usize) -> bool {
        self.code.iter().any(|segment| segment.contains(&address))
    }
}

fn read_main_image() -> Image {
    let mut image = Image { load_bias: 0, code: Vec::new(), build_id: None };
    // SAFETY: the callback has the signature that dl_iterate_phdr wants and gets a pointer to
    // `image`, which outlives the call and which nobody else uses meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(visit_first), (&raw mut image).cast()) };
    image
}

/// Reads the first object of the loader's list, which is the main program, and stops there.
///
/// # Safety
/// To be called by `dl_iterate_phdr`, with a pointer to an [`Image`] as its data.
unsafe extern "C" fn visit_first(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    image: *mut c_void,
) -> libc::c_int {
    // SAFETY: the loader passes a valid info whose program headers stay mapped for the life of
    // the process; `image` is the exclusive pointer that `read_main_image` passed.
    let (info, image) = unsafe { (&*info, &mut *image.cast::<Image>()) };
    // SAFETY: `dlpi_phdr` points to `dlpi_phnum` headers of the loaded object.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    image.load_bias = info.dlpi_addr as usize;
    for header in headers {
        let start = image.load_bias.wrapping_add(header.p_vaddr as usize);
        let size = header.p_memsz as usize;
        if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0 {
            image.code.push(start..start.saturating_add(size));
        } else if header.p_type == libc::PT_NOTE && image.build_id.is_none() {
            // SAFETY: a note segment of the main program is part of a readable load segment.
            let notes = unsafe { std::slice::from_raw_parts(start as *const u8, size) };
            image.build_id = find_build_id(notes);
        }
    }
    1
}

/// Finds the GNU build-id in the bytes of a note segment.
fn find_build_id(mut notes: &[u8]) -> Option<Vec<u8>> {
    const NT_GNU_BUILD_ID: u32 = 3;
    while notes.len() >= 12 {
        let word = |at: usize| u32::from_ne_bytes([notes[at], notes[at + 1], notes[at + 2], notes[at + 3]]);
        let (name_size, desc_size, kind) = (word(0) as usize, word(4) as usize, word(8));
        let desc_at = 12 + name_size.next_multiple_of(4);
        let name = notes.get(12..12 + name_size)?;
        let desc = notes.get(desc_at..desc_at + desc_size)?;
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" {
            return Some(desc.to_vec());
        }
        notes = notes.get(desc_at + desc_size.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn a_function_of_the_program_has_an_offset_and_back() {
        let address = read_main_image as fn() -> Image as usize;
        let offset = Image::main().offset_of(address).unwrap();
        assert_eq!(Image::main().address_at(offset), Some(address));
    }

    #[test]
    fn data_stack_and_other_libraries_are_not_code_of_the_image() {
        static DATA: u8 = 1;
        let local = 1;
        let foreign = libc::getpid as unsafe extern "C" fn() -> i32 as usize;
        for address in [&raw const DATA as usize, &raw const local as usize, foreign, 0] {
            assert_eq!(Image::main().offset_of(address), None, "{address:x}");
        }
        assert_eq!(Image::main().address_at(u64::MAX), None);
    }

    #[test]
    fn build_id_is_found_behind_other_notes_and_never_read_out_of_bounds() {
        let mut notes = Vec::new();
        for (name, kind, desc) in [(&b"ABC\0"[..], 1u32, &[9u8; 5][..]), (b"GNU\0", 3, &[1, 2, 3, 4])] {
            notes.extend((name.len() as u32).to_ne_bytes());
            notes.extend((desc.len() as u32).to_ne_bytes());
            notes.extend(kind.to_ne_bytes());
            notes.extend(name);
            notes.extend(desc);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        assert_eq!(find_build_id(&notes), Some(vec![1, 2, 3, 4]));
        for cut in 0..notes.len() {
            assert_eq!(find_build_id(&notes[..cut]), None);
        }
    }
}
