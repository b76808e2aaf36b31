"""The solver inside other programs: each folder or file here works alone, copied into the program."""
