"""The direct engine: root trees and disks, made without a VM."""
