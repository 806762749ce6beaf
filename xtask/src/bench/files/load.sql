create table t(a, b, c);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 500000)
    insert into t select i, hex(randomblob(8)), random() from n;
create index x on t(b);
select count(*), sum(length(a.b)) from t a join t b on a.b = b.b where a.c > 0;
select b from t order by c limit 5;
