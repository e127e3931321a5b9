"""The Packer engine: renders a folder of HCL2, checks it, and runs packer in it."""
