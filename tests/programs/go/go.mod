module leaktrace.test/programs

go 1.19
