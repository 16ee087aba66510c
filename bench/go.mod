module github.com/weftnet/weft/bench

go 1.26.0
