//! The object without what only a debugger reads: three quarters of what the linker writes, which every program that
//! embeds the object would carry and take apart. BTF stays: the kernel shows source lines with it.

use object::{
    build::{
        Error,
        elf::{Builder, SectionData},
    },
    elf::SHT_STRTAB,
};

/// How the names of sections begin that go: DWARF, its relocations, and those of BTF, which nobody applies (as in libbpf's
/// linker.c): its offsets are within a section, and already right.
const UNREAD: [&[u8]; 5] = [
    b".debug_",
    b".rel.debug_",
    b".rela.debug_",
    b".rel.BTF",
    b".rela.BTF",
];

/// The same object without DWARF and without relocations of BTF.
pub(super) fn without_debug_information(object: &[u8]) -> Result<Vec<u8>, Error> {
    let mut builder = Builder::read(object)?;
    for section in &mut builder.sections {
        section.delete = UNREAD.iter().any(|start| section.name.starts_with(start));
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections and of symbols in one table; they are written to two.
    let has_names = builder
        .sections
        .iter()
        .any(|section| matches!(section.data, SectionData::SectionString));
    if !has_names {
        let names = builder.sections.add();
        names.name = b".shstrtab"[..].into();
        names.sh_type = SHT_STRTAB;
        names.data = SectionData::SectionString;
    }
    let mut lean = Vec::new();
    builder.write(&mut lean)?;
    Ok(lean)
}

#[cfg(test)]
mod tests {
    use object::{
        Endianness,
        elf::{EM_BPF, ET_REL, SHT_PROGBITS},
    };

    use super::*;

    fn object(names: &[&str]) -> Vec<u8> {
        let mut builder = Builder::new(Endianness::Little, true);
        builder.header.e_type = ET_REL;
        builder.header.e_machine = EM_BPF;
        for name in names {
            let section = builder.sections.add();
            section.name = name.as_bytes().to_vec().into();
            section.sh_type = SHT_PROGBITS;
            section.data = SectionData::Data(name.as_bytes().to_vec().into());
        }
        let table = builder.sections.add();
        table.name = b".shstrtab"[..].into();
        table.sh_type = SHT_STRTAB;
        table.data = SectionData::SectionString;
        let mut bytes = Vec::new();
        builder.set_section_sizes();
        builder.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn only_what_nobody_reads_goes() {
        let whole = object(&[
            "classifier",
            ".debug_info",
            ".rel.debug_info",
            ".BTF",
            ".rel.BTF",
            ".BTF.ext",
            ".rel.BTF.ext",
            ".maps",
        ]);
        let lean = without_debug_information(&whole).unwrap();
        assert_eq!(lean, object(&["classifier", ".BTF", ".BTF.ext", ".maps"]));
        assert!(lean.len() < whole.len());
    }
}
