"""The output: part files, snapshots, leases, receipts, and tables over them."""
