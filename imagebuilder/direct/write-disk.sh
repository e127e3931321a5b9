#!/bin/sh
# Runs in the tools tree: fills /output with boot.img, core.img and esp.img. Everything that could be random or of this
# moment is given from outside.
# in: ROOT_UUID ESP_SERIAL ESP_KIB EFI_VENDOR EFI_ARCH SOURCE_DATE_EPOCH
set -eu
cd /output
export MTOOLS_SKIP_CHECK=1

cat > find-root.cfg <<EOF
search --no-floppy --fs-uuid --set=root ${ROOT_UUID:?}
set prefix=(\$root)/boot/grub
EOF

# GRUB for BIOS: boot.img goes to the first sector, core.img to the BIOS boot partition; Python patches both.
if [ -e /usr/lib/grub/i386-pc/boot.img ]; then
    cp /usr/lib/grub/i386-pc/boot.img boot.img
    grub-mkimage -O i386-pc -c find-root.cfg -p /boot/grub -o core.img \
        biosdisk part_gpt ext2 search search_fs_uuid normal configfile linux serial terminal echo test
fi

# UEFI: the signed chain shim -> GRUB, at the fallback path that every firmware tries.
case ${EFI_ARCH:?} in
    amd64) suffix=x64 fallback=BOOTX64.EFI signed=/usr/lib/grub/x86_64-efi-signed ;;
    arm64) suffix=aa64 fallback=BOOTAA64.EFI signed=/usr/lib/grub/arm64-efi-signed ;;
    *) echo "no EFI names for $EFI_ARCH" >&2; exit 1 ;;
esac
truncate -s "${ESP_KIB:?}K" esp.img
mkfs.vfat -F 32 -s 1 -n ESP -i "${ESP_SERIAL:?}" --invariant esp.img > /dev/null
(cat find-root.cfg; echo "configfile \$prefix/grub.cfg") > esp-grub.cfg
touch -d "@${SOURCE_DATE_EPOCH:?}" esp-grub.cfg
mmd -i esp.img ::/EFI ::/EFI/BOOT "::/EFI/${EFI_VENDOR:?}"
mcopy -i esp.img "/usr/lib/shim/shim$suffix.efi.signed" "::/EFI/BOOT/$fallback"
mcopy -i esp.img "/usr/lib/shim/mm$suffix.efi.signed" "::/EFI/BOOT/mm$suffix.efi"
mcopy -i esp.img "$signed/grub$suffix.efi.signed" "::/EFI/BOOT/grub$suffix.efi"
mcopy -i esp.img esp-grub.cfg "::/EFI/$EFI_VENDOR/grub.cfg"
